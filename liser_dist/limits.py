"""What one clip costs each stage, alone in one process: the limit of any job on it.

python -m liser_dist.limits SPEC.json COSTS.json
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from liser_dist.records import Clip, Example, Sample, Targets
from liser_dist.results import Record
from liser_dist.shards import ShardVisit, find_shards, read_samples
from liser_dist.spec import DistillSpec

CLIPS, WARM_UP = 64, 16


class Costs(Record):
    """CPU seconds a clip, of all threads of the one process."""

    decode_s: float
    speech_s: float
    face_s: float
    student_s: float

    @property
    def total_s(self) -> float:
        return self.decode_s + self.speech_s + self.face_s + self.student_s


def measure_costs(spec: DistillSpec) -> Costs:
    """On the first clips of the unlabelled shards, those left out that warm things up."""
    import torch

    from liser_dist.batches import Batcher
    from liser_dist.decode import decode_clip
    from liser_dist.learning import Learner
    from liser_dist.teachers import load_teacher

    torch.set_num_threads(1)
    samples = list(itertools.islice(_samples(spec), CLIPS))
    clips: list[Clip] = []
    costs = {}
    start = 0.0
    for number, sample in enumerate(samples):
        start = time.process_time() if number == WARM_UP else start
        clips.append(decode_clip(sample, spec.clip, start_share=0.5))
    costs["decode_s"] = (time.process_time() - start) / (len(samples) - WARM_UP)
    said = {name: [Targets()] * len(clips) for name in ("speech", "face")}
    for name in said:
        teacher_spec = getattr(spec.teachers, name)
        if teacher_spec is None:
            costs[f"{name}_s"] = 0.0
            continue
        teacher = load_teacher(teacher_spec, spec.emotions, spec.clip)
        teacher.teach(clips[:WARM_UP])
        start = time.process_time()
        said[name] = [
            targets for batch in _batches(clips, spec.teachers.batch_size)
            for targets in teacher.teach(batch)
        ]  # fmt: skip
        costs[f"{name}_s"] = (time.process_time() - start) / len(clips)
    examples = [Example.of(*one) for one in zip(clips, said["speech"], said["face"], strict=True)]
    known = torch.ones(2, len(spec.emotions), dtype=torch.bool)
    learner, batcher = Learner(spec, known, {}, torch.device("cpu")), Batcher.of(spec)
    rows = spec.train.batch_size
    learner.learn(batcher.batch(examples[:rows]), 0.5)
    start = time.process_time()
    for first in range(0, len(examples), rows):
        learner.learn(batcher.batch(examples[first : first + rows]), 0.5)
    costs["student_s"] = (time.process_time() - start) / len(examples)
    return Costs(**costs)


def _samples(spec: DistillSpec) -> Iterator[Sample]:
    for shard in find_shards(spec.data.unlabelled, "data.unlabelled"):
        yield from read_samples(ShardVisit(0, shard.place), labelled=False)


def _batches(clips: list[Clip], size: int) -> Iterator[list[Clip]]:
    return (clips[first : first + size] for first in range(0, len(clips), size))


def main() -> None:
    spec = DistillSpec.model_validate_json(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps(measure_costs(spec).model_dump()))


if __name__ == "__main__":
    main()
