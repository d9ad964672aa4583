#!/bin/sh
"""exec" "$(ls "${VIRTUAL_ENV:-${0%/*}/../.venv}/bin/python" 2>/dev/null || echo python3)" "$0" "$@"

Unlabelled video in, student out.

    jobs/distill.py [SPEC] [--check | --teach-only] [--FIELD VALUE ...]

The line above is for the shell: run as a command, this finds the environment's own python.
"""

import sys
from pathlib import Path

from liser_dist.command import read_command, run_job
from liser_dist.spec import DistillSpec

DEFAULT = Path(__file__).parent / "specs" / "demo.yaml"
ABOUT = "Distil a student from unlabelled video."
TEACH_ONLY = "--teach-only"


def main() -> None:
    command = read_command(
        sys.argv[1:], DEFAULT, ABOUT, DistillSpec, {TEACH_ONLY: "fill `targets.store`; stop"}
    )
    # Heavy: a mistake in the spec is told before, and a spawned child that loads this file
    # as its main module needs none of it.
    from liser_dist import cluster, distillation, planning, screen, teaching

    trains = TEACH_ONLY not in command.flags
    plan = planning.plan(command.spec, make_corpus=not command.check, trains=trains)
    if command.check:
        screen.print_plan(plan.spec, plan.capacity, plan.shards, trains)
        return
    if not trains:
        store, _ = teaching.teach(plan)
        cluster.leave_ray()
        print(store.place, flush=True)
        return
    result, place = distillation.run(plan)
    cluster.leave_ray()
    screen.print_result(result)
    print(place, flush=True)


if __name__ == "__main__":
    run_job(main)
