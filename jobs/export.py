#!/bin/sh
"""exec" "$(ls "${VIRTUAL_ENV:-${0%/*}/../.venv}/bin/python" 2>/dev/null || echo python3)" "$0" "$@"

A checkpoint's student as a folder that runs alone: ONNX, int8, predict.py, a model card.

    jobs/export.py [SPEC] [--check] --checkpoint RUN [--output FOLDER] [--FIELD VALUE ...]
"""

import sys
from pathlib import Path

from liser_dist.command import read_command, run_job
from liser_dist.export_spec import ExportSpec

DEFAULT = Path(__file__).parent / "specs" / "export.yaml"
ABOUT = "A checkpoint's student as a folder that runs alone."


def main() -> None:
    command = read_command(sys.argv[1:], DEFAULT, ABOUT, ExportSpec)
    from liser_dist import export, export_result, screen  # heavy

    plan = export.plan(command.spec)
    if command.check:
        print(command.spec.model_dump_json(indent=1))
        print(f"{plan.checkpoint}: its student {command.spec.student!r} can be exported")
        for name, shards in plan.shards.items():
            print(f"{name}: {len(shards)} shards, {sum(one.clips for one in shards)} clips")
        return
    found, place = export.run(plan)
    for table in export_result.tables_of(found):
        screen.console.print(table)
    print(place, flush=True)


if __name__ == "__main__":
    run_job(main)
