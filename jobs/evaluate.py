#!/bin/sh
"""exec" "$(ls "${VIRTUAL_ENV:-${0%/*}/../.venv}/bin/python" 2>/dev/null || echo python3)" "$0" "$@"

Score a student or a teacher on labelled shards.

    jobs/evaluate.py [SPEC] [--check] --model.kind student --model.model CHECKPOINT \
        --data.labelled SHARDS [--FIELD VALUE ...]
"""

import sys
from pathlib import Path

from liser_dist.command_line import read_command, run_job
from liser_dist.config.evaluate import EvaluateSpec

DEFAULT = Path(__file__).parent / "specs" / "evaluate.yaml"
ABOUT = "Score a student or a teacher on labelled shards."


def main() -> None:
    """Check the job and, without `--check`, run it."""
    command = read_command(sys.argv[1:], DEFAULT, ABOUT, EvaluateSpec)
    from liser_dist.cluster.connect import leave_ray
    from liser_dist.console import output, print_plan
    from liser_dist.evaluation.assess import assessment_tables
    from liser_dist.evaluation.evaluate import plan_evaluation, run_evaluation
    from liser_dist.pipeline.plan import NO_WORKERS, probe_outputs

    plan = plan_evaluation(command.spec)
    probe_outputs(plan.spec.output)
    if command.check:
        shards = {"labelled": plan.shards}
        print_plan(plan.spec, plan.spec.resources, NO_WORKERS, plan.capacity, shards)
        return
    assessment, path = run_evaluation(plan)
    leave_ray()
    for table in assessment_tables(assessment):
        output.print(table)
    print(path, flush=True)


if __name__ == "__main__":
    run_job(main)
