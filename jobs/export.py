#!/bin/sh
"""exec" "$(ls "${VIRTUAL_ENV:-${0%/*}/../.venv}/bin/python" 2>/dev/null || echo python3)" "$0" "$@"

Export a checkpoint's student to a folder that needs nothing of this package.

    jobs/export.py [SPEC] [--check] --checkpoint RUN [--output FOLDER] [--FIELD VALUE ...]
"""

import sys
from pathlib import Path

from liser_dist.command_line import read_command, run_job
from liser_dist.config.export import ExportSpec

DEFAULT = Path(__file__).parent / "specs" / "export.yaml"
ABOUT = "Export a checkpoint's student to a folder that needs nothing of this package."


def main() -> None:
    """Check the spec and, without `--check`, export."""
    command = read_command(sys.argv[1:], DEFAULT, ABOUT, ExportSpec)
    from liser_dist.console import output
    from liser_dist.export.job import plan_export, run_export
    from liser_dist.export.result import export_tables

    plan = plan_export(command.spec)
    if command.check:
        print(command.spec.model_dump_json(indent=1))
        print(f"{plan.checkpoint}: its student {command.spec.student!r} can be exported")
        for name, shards in plan.shards.items():
            clips = sum(shard.clips for shard in shards)
            print(f"{name}: {clips} clips (shards: {len(shards)})")
        return
    export, place = run_export(plan)
    for table in export_tables(export):
        output.print(table)
    print(place, flush=True)


if __name__ == "__main__":
    run_job(main)
