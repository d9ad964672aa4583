"""The counting student's weights are how often each clip was trained."""

import torch

from liser_dist.batches import Batcher
from liser_dist.counting import COUNTS, CountingLearner
from liser_dist.features import LogMel
from liser_dist.fields import EMOTIONS
from liser_dist.records import Example
from liser_dist.spec import AugmentSpec, DistillSpec

SPEC = DistillSpec.model_validate(
    {
        "name": "a",
        "data": {"unlabelled": "clips"},
        "teachers": {"speech": {"kind": "mock"}},
        "student": {"kind": "counting"},
    }
)


def example(shard: str, index: int, emotion: str = "") -> Example:
    return Example(key="k", shard=shard, index=index, epoch=0, emotion=emotion)


def test_each_clip_of_a_batch_counts_by_one_and_labelled_clips_do_not() -> None:
    mel = LogMel(16000, 40)
    batcher = Batcher(mel, EMOTIONS, {}, AugmentSpec(), 0, 16000, {(0, "a"): 0, (0, "b"): 3})
    known = torch.ones(2, len(EMOTIONS), dtype=torch.bool)
    learner = CountingLearner(5, SPEC, known, {}, torch.device("cpu"))
    for rows in ([example("a", 0), example("b", 1)], [example("b", 1)], []):
        learner.learn(batcher.batch(rows, [example("a", 2, "sad")]), progress=0.5)
    assert learner.tensors()[COUNTS].tolist() == [1, 0, 0, 0, 2]
    assert learner.steps == 3
