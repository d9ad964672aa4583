#!/bin/sh
"""exec" "$(ls "${VIRTUAL_ENV:-${0%/*}/../.venv}/bin/python" 2>/dev/null || echo python3)" "$0" "$@"

Measure the system.

    jobs/benchmark.py speed [SPEC] --output PLACE      how fast, beside its limit and a plain loop
    jobs/benchmark.py simulate [SPEC] --output PLACE   on 1 to 64 GPUs, with teachers that only wait
    jobs/benchmark.py faults [SPEC] --output PLACE     what becomes of the clips when it is broken

Each takes `--FIELD VALUE ...` as any job; prints tables, and leaves them with the log of each job
under PLACE. Ends with 1 where something is not as it should be.
"""

import importlib
import sys
from pathlib import Path

from liser_dist.command import read_command, run_job
from liser_dist.errors import SpecError
from liser_dist.spec import DistillSpec

SPECS = Path(__file__).parent / "specs"
MEASURED_BY = {
    "speed": "liser_dist.speed",
    "simulate": "liser_dist.simulation",
    "faults": "liser_dist.fault_report",
}
ABOUT = f"Measure the system: {', '.join(MEASURED_BY)}."


def main() -> None:
    what, *arguments = sys.argv[1:] or [""]
    if what not in MEASURED_BY:
        raise SpecError(f"jobs/benchmark.py does not know {what!r}; give {', '.join(MEASURED_BY)}")
    command = read_command(arguments, SPECS / f"{what}.yaml", ABOUT, DistillSpec)
    spec = command.spec.with_absolute_places()
    if command.check:
        print(spec.model_dump_json(indent=1))
        return
    folder = Path(spec.output)
    if "://" in spec.output or (folder.exists() and any(folder.iterdir())):
        raise SpecError(
            f"output: {spec.output} is not an empty folder on disk; each measurement needs one"
        )
    folder.mkdir(parents=True, exist_ok=True)
    measure = importlib.import_module(MEASURED_BY[what]).measure  # heavy
    sys.exit(0 if measure(spec, folder) else 1)


if __name__ == "__main__":
    run_job(main)
