"""Runs everything that `jobs/benchmark.py faults` measures, and reports what became of the clips.

Each fault is injected at random moments of a job on the synthetic corpus, on a local Ray cluster;
afterwards the weights of the counting student (`students/counting.py`) show how often each clip was
trained on. Then a job runs on as many damaged clips as good ones, and the memory of each kind of
process is measured.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table

from liser_dist.benchmarks.damage import break_clips
from liser_dist.benchmarks.fault_runs import FaultRow, inject_faults
from liser_dist.benchmarks.faults import FAULTS
from liser_dist.benchmarks.job_runs import BenchmarkJob
from liser_dist.benchmarks.memory import MemoryRow, watch_memory
from liser_dist.console import output
from liser_dist.errors import SpecError
from liser_dist.runs.results import write_rows
from liser_dist.synthetic.corpus import prepare_synthetic

logger = logging.getLogger(__name__)

GOOD_CLIPS = 1000
MAX_MEMORY_GROWTH = 0.10  # a share; more is a leak


def measure_fault_tolerance(job: BenchmarkJob, folder: Path) -> bool:
    """Run all faults, the damaged clips and the memory measurement, and print their tables.

    A part that fails is logged and listed at the end; the other parts still run.

    Args:
        job: a job on the synthetic corpus with a counting student.
        folder: an empty folder, for faults.json, damage.json, memory.json and the logs.

    Returns:
        True if every part has a result, no clip was lost or trained twice, nothing was left
        behind, and no memory grew.

    Raises:
        SpecError: the job is not on the synthetic corpus, or its student does not count.
    """
    spec = job.spec
    if spec.synthetic is None or spec.student.kind != "counting":
        raise SpecError(
            "the faults benchmark needs a spec with `synthetic` and `student.kind: counting`, "
            "such as jobs/specs/faults.yaml"
        )
    prepare_synthetic(spec.synthetic)
    failed: list[str] = []
    rows: list[FaultRow] = []
    for name in FAULTS:
        with _listing_failures(name, failed):
            rows += inject_at_moments(job, name, folder)
        write_rows(folder / "faults.json", rows)
    output.print(fault_table(rows))
    broken = [row.fault for row in rows if row.lost or row.twice or row.left_behind]
    with _listing_failures("damage", failed):
        damage = break_clips(job, folder / "damage", GOOD_CLIPS)
        write_rows(folder / "damage.json", [damage])
        output.print(damage.model_dump_json(indent=1))
        broken += ["damage"] if damage.lost or damage.twice or damage.left_behind else []
    with _listing_failures("memory", failed):
        memory = watch_memory(job, folder / "memory")
        write_rows(folder / "memory.json", memory)
        output.print(memory_table(memory))
        broken += [f"memory of {row.kind}" for row in memory if row.growth > MAX_MEMORY_GROWTH]
    output.print(
        f"measurements that failed: {', '.join(failed) or 'none'}; measurements that found lost or "
        "repeated clips, processes left behind or growing memory: "
        f"{', '.join(broken) or 'none'}"
    )
    return not (failed or broken)


@contextlib.contextmanager
def _listing_failures(name: str, failed: list[str]) -> Iterator[None]:
    """Log a failure and append its name to `failed`, so that the next parts still run."""
    try:
        yield
    except (RuntimeError, TimeoutError, subprocess.CalledProcessError) as error:
        failed.append(name)
        logger.error("the measurement `%s` failed: %s; the next one follows", name, error)


def inject_at_moments(job: BenchmarkJob, name: str, folder: Path) -> Iterator[FaultRow]:
    """Inject one fault at several moments of a job, and print each row."""
    run_folder = folder / name.replace(" ", "-").replace(",", "")
    for row in inject_faults(job, [name] * FAULTS[name].moments, run_folder):
        output.print(row.model_dump_json())
        yield row


def fault_table(rows: Sequence[FaultRow]) -> Table:
    """Return a table with a row for each injected fault."""
    table = Table(
        "fault", "injected at clip", "recovered in", "clips", "trained once", "lost",
        "trained twice", "processes left", title="clips after each fault",
    )  # fmt: skip
    for row in rows:
        table.add_row(
            row.fault, str(row.injected_at), f"{row.recovered_s:.1f} s", str(row.total),
            str(row.trained_once), str(row.lost), str(row.twice), ", ".join(row.left_behind) or "-",
        )  # fmt: skip
    return table


def memory_table(rows: Sequence[MemoryRow]) -> Table:
    """Return a table with a row for each process."""
    columns = ("process", "after 1,000 clips", "after 5,000", "growth")
    table = Table(
        *columns, title="private memory of each process, and the peak of the object store"
    )
    for row in rows:
        sizes = (f"{size / 2**20:.0f} MiB" for size in (row.bytes_before, row.bytes_after))
        table.add_row(row.kind, *sizes, f"{row.growth:+.1%}")
    return table
