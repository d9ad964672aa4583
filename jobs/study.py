#!/bin/sh
"""exec" "$(ls "${VIRTUAL_ENV:-${0%/*}/../.venv}/bin/python" 2>/dev/null || echo python3)" "$0" "$@"

Run a study: how far a student gets with few labels, with and without unlabelled clips.

    jobs/study.py [SPEC] [--check] [--FIELD VALUE ...]
"""

import sys
from pathlib import Path

from liser_dist.command_line import read_command, run_job
from liser_dist.config.study import StudySpec

DEFAULT = Path(__file__).parent / "specs" / "study-synthetic.yaml"
ABOUT = "Measure how far a student gets with few labels, with and without unlabelled clips."


def main() -> None:
    """Check the study and, without `--check`, run it."""
    command = read_command(sys.argv[1:], DEFAULT, ABOUT, StudySpec)
    from liser_dist.cluster.connect import leave_ray
    from liser_dist.console import output, print_plan
    from liser_dist.evaluation.study import require_cell_fits, run_study
    from liser_dist.evaluation.study_report import gain_table, uar_table
    from liser_dist.evaluation.study_splits import check_labels
    from liser_dist.pipeline.plan import (
        check_cluster,
        check_data,
        plan_distill,
        prepare_corpus,
        probe_outputs,
    )

    job = check_cluster(command.spec, trains=False)
    require_cell_fits(command.spec, job.capacity)
    probe_outputs(job.spec.output, job.spec.track)
    if command.check:
        shards = check_data(job)
        if shards:
            check_labels(command.spec, shards)
        print_plan(job.spec, job.spec.resources, job.worker_bounds, job.capacity, shards)
        return
    prepare_corpus(job.spec.synthetic)
    plan = plan_distill(job)
    result, place = run_study(plan)
    leave_ray()
    output.print(uar_table(result))
    output.print(gain_table(result.gains))
    print(place, flush=True)


if __name__ == "__main__":
    run_job(main)
