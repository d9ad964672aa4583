"""Runs a job as a plain loop: WebDataset, a DataLoader, and the teachers inline, without Ray.

The plain loop is what one would write without this package. `jobs/benchmark.py speed` compares a
Ray job with it: both use the same clips, decoder, teachers, student and loss. It is the simplest
loop that still uses every core.

    python -m liser_dist.benchmarks.baseline SPEC.json TIMELINE.json
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liser_dist.benchmarks.job_runs import read_measurement_command
from liser_dist.config.distill import DistillSpec
from liser_dist.config.stream import ClipSpec
from liser_dist.records import CENTRE_SHARE, Clip, Example, Sample, Targets

if TYPE_CHECKING:
    import torch

    from liser_dist.teachers.model_teacher import Teacher

PROGRESS = 0.5  # of the training: the losses that the job would use halfway


class InlineJob:
    """The teachers and the student of a job, for use in this process.

    Attributes:
        teachers: those that the job names, by "speech" and "face".
    """

    def __init__(self, spec: DistillSpec, device: torch.device) -> None:
        """Load the teachers, and create the student on `device`."""
        import torch

        from liser_dist.students.batches import Batcher
        from liser_dist.students.learner import Learner
        from liser_dist.teachers.teachers import load_teacher

        specs = {"speech": spec.teachers.speech, "face": spec.teachers.face}
        self.teachers: Mapping[str, Teacher] = {
            name: load_teacher(teacher, spec.emotions, spec.clip)
            for name, teacher in specs.items()
            if teacher is not None
        }
        known = torch.ones(2, len(spec.emotions), dtype=torch.bool)
        self._learner = Learner(spec, known, {}, device)
        self._batcher = Batcher.from_spec(spec)

    def learn(self, examples: Sequence[Example]) -> None:
        """Take one training step on a batch of examples."""
        self._learner.learn(self._batcher.batch(examples), PROGRESS)


def join_targets(clips: Sequence[Clip], targets: Mapping[str, Sequence[Targets]]) -> list[Example]:
    """Return the examples of clips; `targets` has those of each teacher, in the clips' order."""
    return [
        Example.from_clip(clip, {name: of_clips[row] for name, of_clips in targets.items()})
        for row, clip in enumerate(clips)
    ]


class DecodeMembers:
    """Decodes a clip from the members of a shard, for `webdataset.map`."""

    def __init__(self, clip: ClipSpec) -> None:
        """`clip`: the job's settings of clips."""
        self.clip = clip

    def __call__(self, members: dict[str, Any]) -> Clip:
        """Decode the window in the middle of the clip."""
        from liser_dist.data.decode import decode_clip

        faces = json.dumps(json.loads(members["json"])["faces"])
        sample = Sample(
            key=members["__key__"], shard=members["__url__"], index=0, epoch=0,
            video=members["mp4"], faces=faces,
        )  # fmt: skip
        return decode_clip(sample, self.clip, start_share=CENTRE_SHARE)


def run_baseline(spec: DistillSpec) -> Iterator[tuple[float, int]]:
    """Train for one epoch; yield after each step the time and the clips in it."""
    import torch
    import webdataset
    from torch.utils.data import DataLoader

    shards = sorted(str(shard) for shard in Path(spec.data.unlabelled).glob("*.tar"))
    clips = webdataset.WebDataset(shards, shardshuffle=False).map(DecodeMembers(spec.clip))
    loader: Any = DataLoader(
        clips, batch_size=spec.train.batch_size, num_workers=os.cpu_count() or 1, collate_fn=list
    )
    batches = iter(loader)  # decoding begins while the teachers are loaded
    job = InlineJob(spec, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    for batch in batches:
        targets = {name: teacher.teach(batch) for name, teacher in job.teachers.items()}
        job.learn(join_targets(batch, targets))
        yield time.time(), len(batch)


def _main() -> None:
    job, _, output = read_measurement_command()
    output.write_text(json.dumps(list(run_baseline(job.spec))))


if __name__ == "__main__":
    _main()
