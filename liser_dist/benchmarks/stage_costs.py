"""Measures how much CPU time each stage of a job needs per clip, each by itself in one process.

No job can process more clips per second than the number of cores divided by the sum of these times.

    python -m liser_dist.benchmarks.stage_costs SPEC.json COSTS.json
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from liser_dist.benchmarks.baseline import InlineJob, join_targets
from liser_dist.benchmarks.job_runs import BenchmarkJob, read_measurement_command, run_measurement
from liser_dist.config.base import Record
from liser_dist.config.stream import ClipSpec
from liser_dist.data.shard_list import find_shards
from liser_dist.data.shards import ShardVisit, read_samples
from liser_dist.records import CENTRE_SHARE, Clip, Example, Sample, Targets

CLIPS, WARM_UP_CLIPS = 64, 16
_Item = TypeVar("_Item")


class StageCosts(Record):
    """CPU seconds per clip and stage, of all threads of one process."""

    decode_s: float
    speech_s: float
    face_s: float
    student_s: float

    @property
    def total_s(self) -> float:
        """CPU seconds of one clip in all stages."""
        return self.decode_s + self.speech_s + self.face_s + self.student_s


def measure_stage_costs(job: BenchmarkJob, folder: Path) -> StageCosts:
    """Measure the costs in a process of its own, which writes to a new folder.

    Raises:
        CalledProcessError: the process failed; its log is in the folder.
    """
    return StageCosts.model_validate_json(run_measurement("stage_costs", job, folder))


def time_stages(job: BenchmarkJob) -> StageCosts:
    """Return the CPU seconds per clip and stage, over the first unlabelled clips.

    The first `WARM_UP_CLIPS` of each stage, or its first batch, are not timed.
    """
    import torch

    torch.set_num_threads(1)
    samples = list(itertools.islice(_read_samples(job.spec.data.unlabelled), CLIPS))
    clips, decode_s = _time_decoding(samples, job.spec.clip)
    inline = InlineJob(job.spec, torch.device("cpu"))
    seconds = {"speech": 0.0, "face": 0.0}
    targets: dict[str, list[Targets]] = {}
    for name, teacher in inline.teachers.items():
        teacher.teach(clips[:WARM_UP_CLIPS])
        start = time.process_time()
        batches = _in_batches(clips, job.spec.teachers.batch_size)
        targets[name] = [answer for batch in batches for answer in teacher.teach(batch)]
        seconds[name] = (time.process_time() - start) / len(clips)
    examples = join_targets(clips, targets)
    return StageCosts(
        decode_s=decode_s,
        speech_s=seconds["speech"],
        face_s=seconds["face"],
        student_s=_time_training(inline, examples, job.spec.train.batch_size),
    )


def _read_samples(shards: str) -> Iterator[Sample]:
    for shard in find_shards(shards, "data.unlabelled"):
        yield from read_samples(ShardVisit(0, shard.place), labelled=False)


def _time_decoding(samples: Sequence[Sample], clip: ClipSpec) -> tuple[list[Clip], float]:
    """Return the decoded clips, and the CPU seconds per clip."""
    from liser_dist.data.decode import decode_clip

    clips: list[Clip] = []
    start = 0.0
    for number, sample in enumerate(samples):
        start = time.process_time() if number == WARM_UP_CLIPS else start
        clips.append(decode_clip(sample, clip, start_share=CENTRE_SHARE))
    return clips, (time.process_time() - start) / (len(samples) - WARM_UP_CLIPS)


def _time_training(job: InlineJob, examples: Sequence[Example], batch_size: int) -> float:
    """Return the CPU seconds per clip of training steps, after a first one."""
    job.learn(examples[:batch_size])
    start = time.process_time()
    for batch in _in_batches(examples, batch_size):
        job.learn(batch)
    return (time.process_time() - start) / len(examples)


def _in_batches(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    return (items[first : first + size] for first in range(0, len(items), size))


def _main() -> None:
    job, _, output = read_measurement_command()
    output.write_text(time_stages(job).model_dump_json())


if __name__ == "__main__":
    _main()
