#!/bin/sh
"""exec" "$(ls "${VIRTUAL_ENV:-${0%/*}/../.venv}/bin/python" 2>/dev/null || echo python3)" "$0" "$@"

Measure speed, scaling or fault tolerance.

    jobs/benchmark.py speed [SPEC] --output DIR      speed of a job, beside a plain Python loop
    jobs/benchmark.py simulate [SPEC] --output DIR   whether 1 to 64 simulated GPUs are kept busy
    jobs/benchmark.py faults [SPEC] --output DIR     clips lost or repeated when faults are injected

Each takes `--FIELD VALUE ...` as any job does, prints tables, and writes them with the log of each
job to DIR. The exit status is 1 if a result is out of its bounds.
"""

import sys
from pathlib import Path

from liser_dist.benchmarks.job_runs import BenchmarkJob
from liser_dist.command_line import read_command, run_job
from liser_dist.config.distill import DistillSpec
from liser_dist.errors import SpecError

SPECS = Path(__file__).parent / "specs"
MEASUREMENTS = ("speed", "simulate", "faults")
ABOUT = f"Run a benchmark: {', '.join(MEASUREMENTS)}."


def measure(name: str, job: BenchmarkJob, folder: Path) -> bool:
    """Run one measurement; True if its results are within their bounds."""
    match name:  # the imports are heavy
        case "speed":
            from liser_dist.benchmarks.speed import measure_speed

            return measure_speed(job, folder)
        case "simulate":
            from liser_dist.benchmarks.simulation import measure_simulation

            return measure_simulation(job, folder)
        case _:
            from liser_dist.benchmarks.fault_report import measure_fault_tolerance

            return measure_fault_tolerance(job, folder)


def main() -> None:
    """Run the measurement that the command line names."""
    name, *arguments = sys.argv[1:] or [""]
    if name not in MEASUREMENTS:
        raise SpecError(
            f"the first argument of jobs/benchmark.py is {name!r}: give one of the measurements "
            f"{', '.join(MEASUREMENTS)}"
        )
    command = read_command(arguments, SPECS / f"{name}.yaml", ABOUT, DistillSpec)
    spec = command.spec.with_absolute_places()
    if command.check:
        print(spec.model_dump_json(indent=1))
        return
    folder = Path(spec.output)
    if "://" in spec.output or (folder.exists() and any(folder.iterdir())):
        raise SpecError(
            f"`output` {spec.output} is not an empty folder on disk: give a new folder for each "
            "measurement"
        )
    folder.mkdir(parents=True, exist_ok=True)
    sys.exit(0 if measure(name, BenchmarkJob(spec), folder) else 1)


if __name__ == "__main__":
    run_job(main)
