"""Simulates teachers on up to 64 GPUs, and measures whether the pipeline keeps them busy.

The scheduling is real: Ray Data, stages and actors of a job, and a logical GPU for each teacher.
Two things are simulated: a teacher sleeps for as long as its computation would take, and the clips
are small and ready-made, because decoders that could feed 64 GPUs do not fit on one machine.

This command measures one cluster; GPU is the type of its GPUs, GPUS their number:

    python -m liser_dist.benchmarks.simulation SPEC.json GPU GPUS ROW.json
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from rich.table import Table

from liser_dist.benchmarks.job_runs import BenchmarkJob, read_measurement_command, run_measurement
from liser_dist.benchmarks.testbed.local_cluster import SHARED_MEMORY, LocalCluster
from liser_dist.config.base import Record
from liser_dist.config.stream import ClipSpec
from liser_dist.console import output
from liser_dist.pipeline.tables import to_table
from liser_dist.records import Clip
from liser_dist.runs.results import write_rows

if TYPE_CHECKING:
    from ray.data import Dataset

# wav2vec2-base on 3 s, about 50 GFLOP, and ViT-B/16 on 8 crops, 17.6 G multiply-adds each (Steiner
# et al., 2022), are 330 GFLOP a clip. Dense bf16 by the data sheets: L4 121 TFLOP/s, H100 SXM 989,
# of which a well-fed encoder reaches about 40 %.
SECONDS_PER_CLIP = {"L4": 0.0068, "H100": 0.00083}
SIZES = (1, 8, 64)
_LOGICAL_CPUS = 4  # Ray starts one process per logical CPU, and starting costs CPU time
TEACHING_S = 90.0  # time for which all teachers have work
# Clips that a teacher takes at once, about 0.2 s of work: Ray Data hands out tasks 8 times/s.
BATCH = {"L4": 32, "H100": 256}
DECODERS = 2
HEADROOM = 1.1  # the decoders could feed this many times the teachers
CATCH_UP_S = 2.0  # a decoder that was held up catches up on at most this much
BLOCKS_PER_TASK = 16  # of a decoder, since it stands for many decoders
_STEADY = (0.5, 0.9)  # of the clips: all teachers are running, and none has run out of clips
BUSY = 0.95


class SimulationRow(Record):
    """How busy the teachers of one size were."""

    gpu: str
    gpus: int
    teacher_busy: float  # share of the steady time in which teachers compute
    clips_per_s: float
    object_store_peak_bytes: int
    driver_cpu_s: float  # of the process that runs the stream


class PacedDecoder:
    """Hands out blocks of ready-made clips, one every `block_s` seconds, instead of decoding."""

    def __init__(self, clip: ClipSpec, rows: int, block_s: float) -> None:
        """`rows`: clips of a block."""
        self._block_s, self._due_s = block_s, time.monotonic()
        px = clip.face_px
        clips = [
            Clip(
                key=f"k{index}", shard="s", index=index, epoch=0,
                waveform=np.ones(16, np.int16),
                faces=np.ones((clip.faces, px, px, 3), np.uint8),
                has_face=np.ones(clip.faces, np.bool_),
            )
            for index in range(rows)
        ]  # fmt: skip
        self.table = to_table(clips, Clip)

    def __call__(self, _batch: Any) -> Iterator[Any]:
        """Yield the blocks of one task."""
        for _ in range(BLOCKS_PER_TASK):
            self._due_s = max(self._due_s + self._block_s, time.monotonic() - CATCH_UP_S)
            time.sleep(max(0.0, self._due_s - time.monotonic()))
            yield self.table


def simulate(job: BenchmarkJob, gpu: str, gpus: int) -> SimulationRow:
    """Simulate one size in this process, on the Ray cluster that the environment names."""
    from liser_dist.cluster.connect import find_cluster
    from liser_dist.cluster.ray_data_internals import block_bundles
    from liser_dist.pipeline.dataset import set_context, teach_clips
    from liser_dist.pipeline.stages import RowOptions

    find_cluster()
    set_context(job.spec.stream)
    decoded = _paced_clips(job, gpu, gpus)
    examples = teach_clips(decoded, job.spec.stream, RowOptions())
    store_before = psutil.disk_usage(str(SHARED_MEMORY)).used
    timeline, done = [], 0
    for bundle in block_bundles(examples):
        done += bundle.num_rows() or 0
        timeline.append((time.monotonic(), done))
    low, high = (share * done for share in _STEADY)
    inside = [(at, clips) for at, clips in timeline if low <= clips <= high]
    (start, first), (end, last) = inside[0], inside[-1]
    clips_per_s = (last - first) / (end - start)
    return SimulationRow(
        gpu=gpu,
        gpus=gpus,
        teacher_busy=clips_per_s * SECONDS_PER_CLIP[gpu] / gpus,
        clips_per_s=clips_per_s,
        object_store_peak_bytes=psutil.disk_usage(str(SHARED_MEMORY)).used - store_before,
        driver_cpu_s=time.process_time(),
    )


def _paced_clips(job: BenchmarkJob, gpu: str, gpus: int) -> Dataset:
    """Return a dataset of clips that come as fast as the decoders of so many teachers work."""
    import ray

    from liser_dist.cluster.ray_data_internals import allow_blocks_ahead
    from liser_dist.pipeline.dataset import BATCHES_A_TASK

    seconds = SECONDS_PER_CLIP[gpu]
    rows = BATCHES_A_TASK * job.spec.teachers.batch_size
    paced: dict[str, Any] = {
        "clip": job.spec.clip,
        "rows": rows,
        "block_s": DECODERS * rows * seconds / gpus / HEADROOM,
    }
    block_bytes = PacedDecoder(**paced).table.nbytes
    context = ray.data.DataContext.get_current()
    # One block for each task of a teacher, where real clips would come in many.
    context.target_min_block_size, context.target_max_block_size = 1, int(0.9 * block_bytes)
    allow_blocks_ahead(context, BLOCKS_PER_TASK)
    tasks = int(-(-TEACHING_S * gpus / seconds // (BLOCKS_PER_TASK * rows)))
    return ray.data.from_items([0] * tasks, override_num_blocks=tasks).map_batches(
        PacedDecoder,
        fn_constructor_kwargs=paced,
        batch_size=1,
        num_cpus=job.spec.resources.decoder_cpus,
        compute=ray.data.ActorPoolStrategy(size=DECODERS),
    )


def measure_simulation(job: BenchmarkJob, folder: Path) -> bool:
    """Simulate all sizes of all GPUs, write simulate.json, and print a table.

    Args:
        job: the job whose stream is measured; its teachers are replaced.
        folder: an empty folder for the results and the logs.

    Returns:
        True if the teachers were busy at each size.

    Raises:
        CalledProcessError: a simulation failed; its log is in the folder.
    """
    rows: list[SimulationRow] = []
    for gpu, gpus in itertools.product(SECONDS_PER_CLIP, SIZES):
        speech = {"kind": "mock", "seconds_per_clip": SECONDS_PER_CLIP[gpu]}
        sized = job.variant(
            teachers={"speech": speech, "face": None, "batch_size": BATCH[gpu]},
            resources={"teachers": [gpus, gpus], "teacher_gpus": 1},
        )
        with LocalCluster(_LOGICAL_CPUS, gpus) as cluster:
            row = run_measurement(
                "simulation", sized, folder / f"{gpu}-{gpus}", gpu, str(gpus),
                environment=cluster.environment,
            )  # fmt: skip
        rows.append(SimulationRow.model_validate_json(row))
        output.print(rows[-1].model_dump_json())
        write_rows(folder / "simulate.json", rows)
    output.print(simulation_table(rows))
    return all(row.teacher_busy >= BUSY for row in rows)


def simulation_table(rows: Sequence[SimulationRow]) -> Table:
    """Return a table with a row for each size."""
    columns = ("GPU", "count", "teachers busy", "clips/s", "object store", "driver CPU time")
    table = Table(*columns, title="simulated teachers")
    for row in rows:
        table.add_row(
            row.gpu, str(row.gpus), f"{row.teacher_busy:.1%}", f"{row.clips_per_s:.0f}",
            f"{row.object_store_peak_bytes / 2**20:.0f} MiB", f"{row.driver_cpu_s:.0f} s",
        )  # fmt: skip
    return table


def _main() -> None:
    job, (gpu, gpus), output = read_measurement_command()
    output.write_text(simulate(job, gpu, int(gpus)).model_dump_json())


if __name__ == "__main__":
    _main()
