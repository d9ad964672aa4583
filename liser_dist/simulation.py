"""Teachers on many GPUs, simulated: does the stream keep them busy?

The schedule is the real one: Ray Data, our stages and actors, a logical GPU for each teacher. What
is not real are the times, which a teacher sleeps, and the clips, which two decoders hand out ready
and small, for those that could feed 64 GPUs do not fit on one machine.

    python -m liser_dist.simulation SPEC.json GPUS SECONDS_PER_CLIP ROW.json     one size
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.table import Table

from liser_dist.local_cluster import LocalCluster
from liser_dist.records import Clip
from liser_dist.results import Record, write_rows
from liser_dist.screen import console
from liser_dist.spec import DistillSpec
from liser_dist.tables import to_table

# wav2vec2-base on 3 s, some 50 GFLOP, and ViT-B/16 on 8 crops, 17.6 G multiply-adds each (Steiner
# et al., 2022), are 330 GFLOP a clip. Dense bf16 by the data sheets: L4 121 TFLOP/s, H100 SXM 989,
# of which a well-fed encoder reaches some 40 %.
SECONDS_PER_CLIP = {"L4": 0.0068, "H100": 0.00083}
SIZES = (1, 8, 64)
LOGICAL_CPUS = 4  # Ray starts a process for each, which does nothing but start
SECONDS = 90.0  # of work for all teachers
# What a teacher takes at once: some 0.2 s of work, for Ray Data hands out tasks 8 times a second.
BATCH = {"L4": 32, "H100": 256}
DECODERS = 2
AHEAD = 1.1  # they could feed so many times the teachers
BEHIND_S = 2.0  # what they were held up is made up for, so far back
HANDED_OUT = 16  # a decoder's blocks for each task, for it stands for many decoders
STEADY = (0.5, 0.9)  # of the clips: all teachers are there, and none has run out of them
BUSY = 0.95


class SimulationRow(Record):
    gpu: str
    gpus: int
    teacher_busy: float  # share of the steady time that teachers teach
    clips_per_s: float
    object_store_peak_bytes: int
    driver_cpu_s: float  # of the process that runs the stream


class Pace:
    """A decoder that hands out clips that it has had ready, a block every so many seconds."""

    def __init__(self, spec: DistillSpec, rows: int, block_s: float) -> None:
        self._block_s, self._due_s = block_s, time.monotonic()
        px = spec.clip.face_px
        clips = [
            Clip(
                key=f"k{index}", shard="s", index=index, epoch=0,
                waveform=np.ones(16, np.int16),
                faces=np.ones((spec.clip.faces, px, px, 3), np.uint8),
                has_face=np.ones(spec.clip.faces, np.bool_),
            )
            for index in range(rows)
        ]  # fmt: skip
        self.table = to_table(clips, Clip)

    def __call__(self, _batch: Any) -> Iterator[Any]:
        for _ in range(HANDED_OUT):
            self._due_s = max(self._due_s + self._block_s, time.monotonic() - BEHIND_S)
            time.sleep(max(0.0, self._due_s - time.monotonic()))
            yield self.table


def simulate(spec: DistillSpec, gpu: str, gpus: int) -> SimulationRow:
    """One size, in this process, on the Ray cluster that the environment names."""
    import ray

    from liser_dist import cluster, pipeline

    cluster.find_cluster()
    pipeline.set_context(spec)
    seconds = SECONDS_PER_CLIP[gpu]
    rows = pipeline.BATCHES_A_TASK * spec.teachers.batch_size
    paced: dict[str, Any] = {
        "spec": spec,
        "rows": rows,
        "block_s": DECODERS * rows * seconds / gpus / AHEAD,
    }
    block_bytes = Pace(**paced).table.nbytes
    context = ray.data.DataContext.get_current()
    # A block for each of a teacher's tasks, where real clips would come in many.
    context.target_min_block_size, context.target_max_block_size = 1, int(0.9 * block_bytes)
    context._max_num_blocks_in_streaming_gen_buffer = HANDED_OUT
    tasks = int(-(-SECONDS * gpus / seconds // (HANDED_OUT * rows)))
    ready = ray.data.from_items([0] * tasks, override_num_blocks=tasks).map_batches(
        Pace,
        fn_constructor_kwargs=paced,
        batch_size=1,
        num_cpus=spec.resources.decoder_cpus,
        compute=ray.data.ActorPoolStrategy(size=DECODERS),
    )
    none = {"labelled": False, "taught": None, "keeping": None, "kept_alone": False}
    taught = pipeline.teach_clips(ready, spec, **none)
    before = psutil.disk_usage("/dev/shm").used
    done, timeline = 0, []
    for bundle in taught.iter_internal_ref_bundles():
        done += bundle.num_rows() or 0
        timeline.append((time.monotonic(), done))
    low, high = (share * done for share in STEADY)
    inside = [one for one in timeline if low <= one[1] <= high]
    (start, first), (end, last) = inside[0], inside[-1]
    clips_per_s = (last - first) / (end - start)
    return SimulationRow(
        gpu=gpu,
        gpus=gpus,
        teacher_busy=clips_per_s * seconds / gpus,
        clips_per_s=clips_per_s,
        object_store_peak_bytes=psutil.disk_usage("/dev/shm").used - before,
        driver_cpu_s=time.process_time(),
    )


def measure(spec: DistillSpec, folder: Path) -> bool:
    """All sizes of all GPUs; returns whether the teachers were kept busy."""
    rows: list[SimulationRow] = []
    for gpu, gpus in itertools.product(SECONDS_PER_CLIP, SIZES):
        place = folder / f"{gpu}-{gpus}"
        place.mkdir()
        (place / "spec.json").write_text(sized(spec, gpu, gpus).model_dump_json())
        with LocalCluster(LOGICAL_CPUS, gpus) as cluster, (place / "log").open("w") as log:
            subprocess.run(
                [sys.executable, "-m", "liser_dist.simulation", place / "spec.json", gpu,
                 str(gpus), place / "row.json"],
                env=cluster.environment, stdout=log, stderr=log, check=True,
            )  # fmt: skip
        rows.append(SimulationRow.model_validate_json((place / "row.json").read_text()))
        console.print(rows[-1].model_dump_json())
        write_rows(folder / "simulate.json", rows)
    console.print(table_of(rows))
    return all(row.teacher_busy >= BUSY for row in rows)


def sized(spec: DistillSpec, gpu: str, gpus: int) -> DistillSpec:
    content = spec.model_dump()
    mock = {"kind": "mock", "seconds_per_clip": SECONDS_PER_CLIP[gpu]}
    content["teachers"] |= {"speech": mock, "face": None, "batch_size": BATCH[gpu]}
    content["resources"] |= {"teachers": [gpus, gpus], "teacher_gpus": 1}
    return DistillSpec.model_validate(content)


def table_of(rows: Sequence[SimulationRow]) -> Table:
    columns = ("GPU", "number", "teachers busy", "clips/s", "object store", "driver's CPU")
    table = Table(*columns, title="simulated teachers")
    for row in rows:
        table.add_row(
            row.gpu, str(row.gpus), f"{row.teacher_busy:.1%}", f"{row.clips_per_s:.0f}",
            f"{row.object_store_peak_bytes / 2**20:.0f} MiB", f"{row.driver_cpu_s:.0f} s",
        )  # fmt: skip
    return table


def main() -> None:
    file, gpu, gpus, out = sys.argv[1:]
    spec = DistillSpec.model_validate_json(Path(file).read_text())
    Path(out).write_text(simulate(spec, gpu, int(gpus)).model_dump_json())


if __name__ == "__main__":
    main()
