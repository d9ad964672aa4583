#!/bin/sh
"""exec" "$(ls "${VIRTUAL_ENV:-${0%/*}/../.venv}/bin/python" 2>/dev/null || echo python3)" "$0" "$@"

Raw video in, clip shards out: what is new under `source` becomes shards under `output`.

    jobs/ingest.py [SPEC] --source PLACE --output PLACE [--check | --watch] [--FIELD VALUE ...]

The line above is for the shell: run as a command, this finds the environment's own python.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from liser_dist.command import read_command, run_job
from liser_dist.errors import StorageError
from liser_dist.ingest_spec import IngestSpec

if TYPE_CHECKING:
    from liser_dist.ingest import Plan

DEFAULT = Path(__file__).parent / "specs" / "ingest.yaml"
ABOUT = "Cut raw video into clip shards."
WATCH = "--watch"
logger = logging.getLogger("liser_dist.jobs.ingest")


def main() -> None:
    flags = {WATCH: "go on for ever, and look for new video every `poll_s`"}
    command = read_command(sys.argv[1:], DEFAULT, ABOUT, IngestSpec, flags)
    # Heavy: a mistake in the spec is told before.
    from liser_dist import cluster, ingest, ingest_screen

    plan = ingest.plan(command.spec)
    if command.check:
        ingest_screen.print_plan(plan)
        return
    cluster.start_ray(plan.capacity)
    if WATCH in command.flags:
        with contextlib.suppress(KeyboardInterrupt):  # what is done stays done
            watch(plan)
    else:
        ingest_screen.show(plan, ingest.ingest(plan))
    cluster.leave_ray()
    print(plan.spec.output, flush=True)


def watch(plan: Plan) -> None:
    """Take what is new, for ever; storage that is away for a while is looked at again."""
    from liser_dist import ingest, ingest_screen

    ingest_screen.show(plan, ingest.ingest(plan))
    while True:
        time.sleep(plan.spec.poll_s)
        try:
            plan = ingest.plan(plan.spec)
            if plan.left:
                ingest_screen.show(plan, ingest.ingest(plan))
        except StorageError as error:
            logger.warning("%s; looking again in %g s", error, plan.spec.poll_s)


if __name__ == "__main__":
    run_job(main)
