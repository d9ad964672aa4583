#!/bin/sh
"""exec" "$(ls "${VIRTUAL_ENV:-${0%/*}/../.venv}/bin/python" 2>/dev/null || echo python3)" "$0" "$@"

How far does a student get with few labels, with and without unlabelled clips?

    jobs/study.py [SPEC] [--check] [--FIELD VALUE ...]
"""

import sys
from pathlib import Path

from liser_dist.command import read_command, run_job
from liser_dist.study_spec import StudySpec

DEFAULT = Path(__file__).parent / "specs" / "study-synthetic.yaml"
ABOUT = "How far a student gets with few labels, with and without unlabelled clips."


def main() -> None:
    command = read_command(sys.argv[1:], DEFAULT, ABOUT, StudySpec)
    from liser_dist import cluster, planning, screen, study, study_report  # heavy

    plan = planning.plan(command.spec, make_corpus=not command.check, trains=False)
    study.require_room(command.spec, plan.capacity)
    if command.check:
        screen.print_plan(plan.spec, plan.capacity, plan.shards, trains=False)
        return
    result, place = study.run(plan)
    cluster.leave_ray()
    screen.console.print(study_report.table_of(result))
    screen.console.print(study_report.gains_of(result.gains))
    print(place, flush=True)


if __name__ == "__main__":
    run_job(main)
