#!/bin/sh
"""exec" "$(ls "${VIRTUAL_ENV:-${0%/*}/../.venv}/bin/python" 2>/dev/null || echo python3)" "$0" "$@"

Distil a student from unlabelled video.

    jobs/distill.py [SPEC] [--check | --teach-only] [--FIELD VALUE ...]

The line with `exec` is for the shell: run as a command, this file finds the environment's Python.
"""

import sys
from pathlib import Path

from liser_dist.command_line import read_command, run_job
from liser_dist.config.distill import DistillSpec

DEFAULT = Path(__file__).parent / "specs" / "demo.yaml"
ABOUT = "Distil a student from unlabelled video."
TEACH_ONLY = "--teach-only"


def main() -> None:
    """Check the job and, without `--check`, run it."""
    command = read_command(
        sys.argv[1:],
        DEFAULT,
        ABOUT,
        DistillSpec,
        {TEACH_ONLY: "compute the targets for `targets.store`, without a student"},
    )
    # These imports are heavy: a mistake in the spec is reported without them, and a child process
    # that loads this file as its main module needs none of them.
    from liser_dist.cluster.connect import leave_ray
    from liser_dist.console import print_plan, print_result
    from liser_dist.pipeline.fill_store import fill_store
    from liser_dist.pipeline.plan import (
        check_cluster,
        check_data,
        plan_distill,
        prepare_corpus,
        probe_outputs,
    )
    from liser_dist.training.distill import run_distill

    trains = TEACH_ONLY not in command.flags
    job = check_cluster(command.spec, trains=trains)
    probe_outputs(job.spec.output, job.spec.track)
    if command.check:
        shards = check_data(job)
        print_plan(job.spec, job.spec.resources, job.worker_bounds, job.capacity, shards)
        return
    prepare_corpus(job.spec.synthetic)
    plan = plan_distill(job)
    if not trains:
        store, _ = fill_store(plan)
        leave_ray()
        print(store.path, flush=True)
        return
    result, path = run_distill(plan)
    leave_ray()
    print_result(result)
    print(path, flush=True)


if __name__ == "__main__":
    run_job(main)
