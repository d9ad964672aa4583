#!/bin/sh
"""exec" "$(ls "${VIRTUAL_ENV:-${0%/*}/../.venv}/bin/python" 2>/dev/null || echo python3)" "$0" "$@"

Measure the system by breaking it.

    jobs/benchmark.py faults [SPEC] --output PLACE [--FIELD VALUE ...]

Each fault is injected at three random moments of a job on the synthetic corpus, on a Ray cluster of
its own on this machine; afterwards the weights say how often each clip was trained. Then as many
damaged clips as good ones, and the memory of each kind of process. Half an hour on two cores.
Prints tables; `faults.json`, `damage.json`, `memory.json` and the log of each job are under PLACE.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.table import Table

from liser_dist.command import read_command, run_job
from liser_dist.errors import SpecError
from liser_dist.results import Record
from liser_dist.spec import DistillSpec

DEFAULT = Path(__file__).parent / "specs" / "faults.yaml"
ABOUT = "Measure the system by breaking it: `faults` is what there is."
MOMENTS = 3
GOOD_CLIPS = 1000
MEMORY_GROWTH = 0.10  # a share; more is a leak
COLUMNS = ("fault", "injected at", "recovered in", "clips", "trained once", "lost", "twice")


def main() -> None:
    what, *arguments = sys.argv[1:] or ["--help"]
    if what != "faults":
        raise SpecError(f"jobs/benchmark.py does not know {what!r}; {ABOUT}")
    command = read_command(arguments, DEFAULT, ABOUT)
    spec = command.spec.with_absolute_places()
    if spec.synthetic is None or spec.student.kind != "counting" or "://" in spec.output:
        raise SpecError(
            "the faults need `synthetic`, `student.kind: counting` and an `output` on disk; "
            f"see {DEFAULT}"
        )
    if command.check:
        print(spec.model_dump_json(indent=1))
        return
    from liser_dist.corpora import prepare_synthetic  # heavy, as what comes below

    folder = Path(spec.output)
    if folder.exists() and any(folder.iterdir()):
        raise SpecError(f"output: {folder} is not empty; each measurement needs a place of its own")
    prepare_synthetic(spec.synthetic)
    sys.exit(1 if run_faults(spec, folder) else 0)


def run_faults(spec: DistillSpec, folder: Path) -> bool:
    """Run them all; returns whether any of the promises was broken."""
    from liser_dist.damage import break_clips
    from liser_dist.faults import FAULTS
    from liser_dist.memory import watch_memory
    from liser_dist.screen import console

    failed: list[str] = []
    rows = []
    for name in FAULTS:
        with going_on(name, failed):
            rows += inject(spec, name, folder)
        write(folder / "faults.json", rows)
    console.print(fault_table(rows))
    broken = [row.fault for row in rows if row.lost or row.twice or row.left_behind]
    with going_on("damage", failed):
        damage = break_clips(spec, folder / "damage", GOOD_CLIPS)
        write(folder / "damage.json", [damage])
        print(damage.model_dump_json(indent=1))
        broken += ["damage"] if damage.lost or damage.twice or damage.left_behind else []
    with going_on("memory", failed):
        memory = watch_memory(spec, folder / "memory")
        write(folder / "memory.json", memory)
        console.print(memory_table(memory))
        broken += [f"memory of {row.kind}" for row in memory if row.growth > MEMORY_GROWTH]
    print(f"no result: {', '.join(failed) or 'none'}; broken: {', '.join(broken) or 'none'}")
    return bool(failed or broken)


@contextlib.contextmanager
def going_on(name: str, failed: list[str]) -> Iterator[None]:
    """What has no result is told and listed, and costs the others nothing."""
    try:
        yield
    except (RuntimeError, TimeoutError, subprocess.CalledProcessError) as error:
        failed.append(name)
        print(f"{name}: no result: {error}", file=sys.stderr)


def write(file: Path, rows: Iterable[Record]) -> None:
    file.write_text(json.dumps([row.model_dump() for row in rows], indent=1))


def inject(spec: DistillSpec, name: str, folder: Path) -> Iterator:
    """One fault, at each of its moments; told as it comes."""
    from liser_dist.faults import inject_faults

    place = folder / name.replace(" ", "-").replace(",", "")
    for row in inject_faults(spec, [name] * MOMENTS, place):
        print(row.model_dump_json(), flush=True)
        yield row


def fault_table(rows: list) -> Table:
    table = Table(*COLUMNS, "left behind", title="what became of the clips")
    for row in rows:
        table.add_row(
            row.fault, str(row.injected_at), f"{row.recovered_s:.1f} s", str(row.total),
            str(row.trained_once), str(row.lost), str(row.twice), ", ".join(row.left_behind) or "-",
        )  # fmt: skip
    return table


def memory_table(rows: list) -> Table:
    table = Table(
        "process",
        "after 1,000 clips",
        "after 5,000",
        "growth",
        title="private memory, without mapped files and the object store",
    )
    for row in rows:
        sizes = (f"{size / 2**20:.0f} MiB" for size in (row.bytes_before, row.bytes_after))
        table.add_row(row.kind, *sizes, f"{row.growth:+.1%}")
    return table


if __name__ == "__main__":
    run_job(main)
