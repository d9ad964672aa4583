#!/bin/sh
"""exec" "$(ls "${VIRTUAL_ENV:-${0%/*}/../.venv}/bin/python" 2>/dev/null || echo python3)" "$0" "$@"

Train a teacher on labelled shards, from a pretrained backbone.

    jobs/train_teacher.py [SPEC] [--check] --backbone MODEL --data.labelled SHARDS
        [--FIELD VALUE ...]
"""

import sys
from pathlib import Path

from liser_dist.command_line import read_command, run_job
from liser_dist.config.train_teacher import TrainTeacherSpec

DEFAULT = Path(__file__).parent / "specs" / "train-teacher.yaml"
ABOUT = "Train a teacher on labelled shards."


def main() -> None:
    """Check the job and, without `--check`, run it."""
    command = read_command(sys.argv[1:], DEFAULT, ABOUT, TrainTeacherSpec)
    from liser_dist.cluster.connect import leave_ray
    from liser_dist.console import output, print_plan
    from liser_dist.pipeline.plan import probe_outputs
    from liser_dist.training.teacher import plan_teacher, run_teacher_training, teacher_table

    plan = plan_teacher(command.spec)
    probe_outputs(plan.spec.output)
    if command.check:
        bounds = (plan.spec.workers, plan.spec.workers)
        print_plan(plan.spec, plan.spec.resources, bounds, plan.capacity, plan.shards)
        return
    result, path = run_teacher_training(plan)
    leave_ray()
    output.print(teacher_table(result))
    for warning in result.warnings:
        output.print(f"WARNING: {warning}")
    print(path, flush=True)


if __name__ == "__main__":
    run_job(main)
