#!/bin/sh
"""exec" "$(ls "${VIRTUAL_ENV:-${0%/*}/../.venv}/bin/python" 2>/dev/null || echo python3)" "$0" "$@"

Labelled shards and a pretrained backbone in, a teacher out.

    jobs/train_teacher.py [SPEC] [--check] --backbone MODEL --data.labelled SHARDS
        [--FIELD VALUE ...]
"""

import sys
from pathlib import Path

from liser_dist.command import read_command, run_job
from liser_dist.train_teacher_spec import TrainTeacherSpec

DEFAULT = Path(__file__).parent / "specs" / "train-teacher.yaml"
ABOUT = "Train a teacher on labelled shards."


def main() -> None:
    command = read_command(sys.argv[1:], DEFAULT, ABOUT, TrainTeacherSpec)
    from liser_dist import cluster, screen, teacher_training  # heavy

    plan = teacher_training.plan(command.spec)
    if command.check:
        screen.print_plan(plan.spec, plan.capacity, plan.shards)
        return
    result, place = teacher_training.run(plan, command.spec)
    cluster.leave_ray()
    screen.console.print(teacher_training.table_of(result))
    print(place, flush=True)


if __name__ == "__main__":
    run_job(main)
