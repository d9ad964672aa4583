"""The counting student's weights are how often each clip was trained."""

import torch

from liser_dist.config.base import EMOTIONS
from liser_dist.config.distill import DistillSpec
from liser_dist.config.student import AugmentSpec
from liser_dist.records import Example
from liser_dist.students.batches import Batcher
from liser_dist.students.counting import COUNTS, CountingLearner
from liser_dist.students.features import AudioInput

SPEC = DistillSpec.model_validate(
    {
        "name": "a",
        "data": {"unlabelled": "clips"},
        "teachers": {"speech": {"kind": "mock"}},
        "student": {"kind": "counting"},
    }
)


def example(shard: str, index: int, epoch: int = 0, emotion: str = "") -> Example:
    return Example(key="k", shard=shard, index=index, epoch=epoch, emotion=emotion)


def test_each_clip_of_a_batch_counts_by_one_and_labelled_clips_do_not() -> None:
    batcher = Batcher(AudioInput(16000, 40, 1.0), EMOTIONS, {}, AugmentSpec(), 0)
    known = torch.ones(2, len(EMOTIONS), dtype=torch.bool)
    learner = CountingLearner(SPEC, known, torch.device("cpu"), {"a": 3, "b": 2})
    for clips in ([example("a", 0), example("b", 1)], [example("b", 1)], []):
        batch = batcher.batch(clips, [example("a", 2, emotion="sad")])
        learner.learn(batch, 0.5, clips)
    learner.learn(batcher.batch(clips := [example("a", 1, epoch=2)]), 0.9, clips)
    counts = learner.tensors()[COUNTS].view(SPEC.train.epochs, -1)
    assert counts.tolist() == [[1, 0, 0, 0, 2], [0] * 5, [0, 1, 0, 0, 0]]
    assert learner.steps == 4


def test_a_step_whose_gradient_is_infinite_changes_nothing() -> None:
    student = SPEC.student.model_copy(update={"infinite_steps": (1,)})
    spec = SPEC.model_copy(update={"student": student})
    batcher = Batcher(AudioInput(16000, 40, 1.0), EMOTIONS, {}, AugmentSpec(), 0)
    known = torch.ones(2, len(EMOTIONS), dtype=torch.bool)
    learner = CountingLearner(spec, known, torch.device("cpu"), {"a": 1})
    clips = [example("a", 0)]
    skipped = [learner.learn(batcher.batch(clips), 0.5, clips).skipped for _ in range(3)]
    assert skipped == [False, True, False]
    assert learner.tensors()[COUNTS].tolist() == [2, 0, 0]
