#!/bin/sh
"""exec" "$(ls "${VIRTUAL_ENV:-${0%/*}/../.venv}/bin/python" 2>/dev/null || echo python3)" "$0" "$@"

Cut the new recordings under `source` into clips, and write the clips as shards to `output`.

    jobs/ingest.py [SPEC] --source PLACE --output PLACE [--check | --watch] [--FIELD VALUE ...]

The line with `exec` is for the shell: run as a command, this file finds the environment's Python.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from liser_dist.command_line import read_command, run_job
from liser_dist.config.ingest import IngestSpec
from liser_dist.errors import StorageError

if TYPE_CHECKING:
    from liser_dist.ingest.job import IngestPlan

DEFAULT = Path(__file__).parent / "specs" / "ingest.yaml"
ABOUT = "Cut raw video into clip shards."
WATCH = "--watch"
logger = logging.getLogger("liser_dist.jobs.ingest")


def main() -> None:
    flags = {WATCH: "keep running, and check for new recordings every `poll_s` seconds"}
    command = read_command(sys.argv[1:], DEFAULT, ABOUT, IngestSpec, flags)
    # Imported late, so that a mistake in the spec is reported at once.
    from liser_dist.cluster.connect import leave_ray, start_ray
    from liser_dist.ingest.console import print_ingest_plan, show_ingest
    from liser_dist.ingest.job import ingest, plan_ingest

    plan = plan_ingest(command.spec)
    if command.check:
        print_ingest_plan(plan)
        return
    start_ray(plan.capacity)
    if WATCH in command.flags:
        with contextlib.suppress(KeyboardInterrupt):  # committed groups are kept
            watch(plan)
    else:
        show_ingest(plan, ingest(plan))
    leave_ray()
    print(plan.spec.output, flush=True)


def watch(plan: IngestPlan) -> None:
    """Ingest new recordings for ever; if the storage does not answer, try again later."""
    from liser_dist.ingest.console import show_ingest
    from liser_dist.ingest.job import ingest, plan_ingest

    show_ingest(plan, ingest(plan))
    while True:
        time.sleep(plan.spec.poll_s)
        try:
            plan = plan_ingest(plan.spec)
            if plan.pending:
                show_ingest(plan, ingest(plan))
        except StorageError as error:
            logger.warning("%s; trying again in %g s", error, plan.spec.poll_s)


if __name__ == "__main__":
    run_job(main)
