#!/bin/sh
"""exec" "$(ls "${VIRTUAL_ENV:-${0%/*}/../.venv}/bin/python" 2>/dev/null || echo python3)" "$0" "$@"

A student or a teacher on labelled shards.

    jobs/evaluate.py [SPEC] [--check] --model.kind student --model.model CHECKPOINT \
        --data.labelled SHARDS [--FIELD VALUE ...]
    jobs/evaluate.py --sizes     how large students are, beside published ones
"""

import sys
from pathlib import Path

from liser_dist.command import read_command, run_job
from liser_dist.evaluate_spec import EvaluateSpec

DEFAULT = Path(__file__).parent / "specs" / "evaluate.yaml"
ABOUT = "Score a student or a teacher on labelled shards."
SIZES = "--sizes"


def main() -> None:
    if sys.argv[1:] == [SIZES]:
        from liser_dist import screen, yardsticks

        screen.console.print(yardsticks.table_of_sizes())
        return
    command = read_command(sys.argv[1:], DEFAULT, ABOUT, EvaluateSpec)
    from liser_dist import assessment, cluster, evaluating, screen  # heavy

    plan = evaluating.plan(command.spec)
    if command.check:
        screen.print_plan(plan.spec, plan.capacity, plan.shards, trains=False)
        return
    found, place = evaluating.run(plan, command.spec)
    cluster.leave_ray()
    for table in assessment.tables_of(found):
        screen.console.print(table)
    print(place, flush=True)


if __name__ == "__main__":
    run_job(main)
