"""What is random about a clip follows from the clip, not from the batch it is in."""

import numpy as np
import torch

from liser_dist.batches import NO_LABEL, Batcher
from liser_dist.features import LogMel
from liser_dist.records import Example
from liser_dist.spec import AugmentSpec


def clip(key: str, samples: int = 8000, emotion: str = "") -> Example:
    random = np.random.default_rng(len(key))
    waveform = (random.standard_normal(samples) * 2000).astype(np.int16)
    return Example(key=key, shard="s", index=0, epoch=1, waveform=waveform, emotion=emotion)


def batcher(**augment: float) -> Batcher:
    return Batcher(LogMel(16000, 40), ["sad", "happy"], {}, AugmentSpec(**augment), 7, 8000)


def test_a_clip_is_augmented_alike_in_any_company() -> None:
    make = batcher(noise_db=10.0)
    a, bb, ccc = clip("a"), clip("bb"), clip("ccc")
    assert torch.equal(make.batch([a, bb, ccc]).mel[1], make.batch([bb]).mel[0])


def test_labelled_clips_are_augmented_afresh() -> None:
    make = batcher()
    labelled = [clip("a", emotion="happy")]
    one, two = (make.batch([], labelled, epoch=epoch).mel for epoch in (1, 2))
    assert not torch.equal(one, two)


def test_labels_of_the_unlabelled_part_are_not_seen() -> None:
    batch = batcher().batch([clip("a", emotion="sad")], [clip("bb", emotion="happy")])
    assert batch.label.tolist() == [NO_LABEL, 1]


def test_no_clips_make_one_silent_row_that_no_loss_counts() -> None:
    batch = batcher().batch([])
    assert batch.label.tolist() == [NO_LABEL]
    assert not batch.speech.given.any()
    assert batch.frames.tolist() == [1]
