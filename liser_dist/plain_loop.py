"""What one would write without this package: WebDataset, a DataLoader, the teachers inline.

The yardstick of `jobs/benchmark.py speed`: the same clips, decoding function, teachers, student and
loss as the job's, in the plainest loop that uses every core.

    python -m liser_dist.plain_loop SPEC.json TIMELINE.json
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from liser_dist.records import Clip, Example, Sample, Targets
from liser_dist.spec import ClipSpec, DistillSpec


class Decoding:
    """For `webdataset.map`: a shard's members -> a Clip."""

    def __init__(self, clip: ClipSpec) -> None:
        self.clip = clip

    def __call__(self, members: dict[str, Any]) -> Clip:
        from liser_dist.decode import decode_clip

        faces = json.dumps(json.loads(members["json"])["faces"])
        sample = Sample(
            key=members["__key__"], shard=members["__url__"], index=0, epoch=0,
            video=members["mp4"], faces=faces,
        )  # fmt: skip
        return decode_clip(sample, self.clip, start_share=0.5)


def run(spec: DistillSpec, shards: Sequence[str]) -> Iterator[tuple[float, int]]:
    """One epoch; after each step the time and the clips in it."""
    import torch
    import webdataset
    from torch.utils.data import DataLoader

    from liser_dist.batches import Batcher
    from liser_dist.learning import Learner
    from liser_dist.teachers import load_teacher

    clips = webdataset.WebDataset(list(shards), shardshuffle=False).map(Decoding(spec.clip))
    loader: Any = DataLoader(
        clips, batch_size=spec.train.batch_size, num_workers=os.cpu_count() or 1, collate_fn=list
    )
    batches = iter(loader)  # decoding begins while the teachers are loaded
    given = [teacher for teacher in (spec.teachers.speech, spec.teachers.face) if teacher]
    teachers = [load_teacher(teacher, spec.emotions, spec.clip) for teacher in given]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    known = torch.ones(2, len(spec.emotions), dtype=torch.bool)
    learner, batcher = Learner(spec, known, {}, device), Batcher.of(spec)
    for batch in batches:
        said = [teacher.teach(batch) for teacher in teachers]
        said += [[Targets()] * len(batch)] * (2 - len(said))
        examples = [Example.of(*one) for one in zip(batch, *said, strict=True)]
        learner.learn(batcher.batch(examples), 0.5)
        yield time.time(), len(batch)


def main() -> None:
    spec = DistillSpec.model_validate_json(Path(sys.argv[1]).read_text())
    shards = sorted(str(shard) for shard in Path(spec.data.unlabelled).glob("*.tar"))
    timeline = list(run(spec, shards))
    Path(sys.argv[2]).write_text(json.dumps(timeline))


if __name__ == "__main__":
    main()
