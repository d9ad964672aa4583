"""All that `jobs/benchmark.py faults` shows: what became of the clips, whatever broke.

Each fault is injected at three random moments of a job on the synthetic corpus, on a Ray cluster of
its own on this machine; afterwards the weights say how often each clip was trained. Then as many
damaged clips as good ones, and the memory of each kind of process.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table

from liser_dist.corpora import prepare_synthetic
from liser_dist.damage import break_clips
from liser_dist.errors import SpecError
from liser_dist.faults import FAULTS, FaultRow, inject_faults
from liser_dist.memory import MemoryRow, watch_memory
from liser_dist.results import write_rows
from liser_dist.screen import console
from liser_dist.spec import DistillSpec

logger = logging.getLogger(__name__)

MOMENTS = 3
GOOD_CLIPS = 1000
MEMORY_GROWTH = 0.10  # a share; more is a leak
COLUMNS = ("fault", "injected at", "recovered in", "clips", "trained once", "lost", "twice")


def measure(spec: DistillSpec, folder: Path) -> bool:
    """Run all of it, print the tables; returns whether every promise was kept."""
    if spec.synthetic is None or spec.student.kind != "counting":
        raise SpecError(
            "the faults need `synthetic` and `student.kind: counting`; see jobs/specs/faults.yaml"
        )
    prepare_synthetic(spec.synthetic)
    failed: list[str] = []
    rows: list[FaultRow] = []
    for name in FAULTS:
        with going_on(name, failed):
            rows += inject(spec, name, folder)
        write_rows(folder / "faults.json", rows)
    console.print(fault_table(rows))
    broken = [row.fault for row in rows if row.lost or row.twice or row.left_behind]
    with going_on("damage", failed):
        damage = break_clips(spec, folder / "damage", GOOD_CLIPS)
        write_rows(folder / "damage.json", [damage])
        console.print(damage.model_dump_json(indent=1))
        broken += ["damage"] if damage.lost or damage.twice or damage.left_behind else []
    with going_on("memory", failed):
        memory = watch_memory(spec, folder / "memory")
        write_rows(folder / "memory.json", memory)
        console.print(memory_table(memory))
        broken += [f"memory of {row.kind}" for row in memory if row.growth > MEMORY_GROWTH]
    console.print(
        f"no result: {', '.join(failed) or 'none'}; broken: {', '.join(broken) or 'none'}"
    )
    return not (failed or broken)


@contextlib.contextmanager
def going_on(name: str, failed: list[str]) -> Iterator[None]:
    """What has no result is told and listed, and costs the others nothing."""
    try:
        yield
    except (RuntimeError, TimeoutError, subprocess.CalledProcessError) as error:
        failed.append(name)
        logger.error("%s: no result: %s", name, error)


def inject(spec: DistillSpec, name: str, folder: Path) -> Iterator[FaultRow]:
    """One fault, at each of its moments; told as it comes."""
    place = folder / name.replace(" ", "-").replace(",", "")
    for row in inject_faults(spec, [name] * MOMENTS, place):
        console.print(row.model_dump_json())
        yield row


def fault_table(rows: Sequence[FaultRow]) -> Table:
    table = Table(*COLUMNS, "left behind", title="what became of the clips")
    for row in rows:
        table.add_row(
            row.fault, str(row.injected_at), f"{row.recovered_s:.1f} s", str(row.total),
            str(row.trained_once), str(row.lost), str(row.twice), ", ".join(row.left_behind) or "-",
        )  # fmt: skip
    return table


def memory_table(rows: Sequence[MemoryRow]) -> Table:
    columns = ("process", "after 1,000 clips", "after 5,000", "growth")
    table = Table(*columns, title="private memory, without mapped files and the object store")
    for row in rows:
        sizes = (f"{size / 2**20:.0f} MiB" for size in (row.bytes_before, row.bytes_after))
        table.add_row(row.kind, *sizes, f"{row.growth:+.1%}")
    return table
