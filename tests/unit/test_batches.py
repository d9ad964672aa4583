"""What is random about a clip follows from the clip, not from the batch it is in."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from liser_dist.batches import NO_LABEL, Batcher, in_a_room, intensity_of, played
from liser_dist.features import LogMel
from liser_dist.records import Example
from liser_dist.spec import AugmentSpec


def clip(key: str, samples: int = 8000, **labels: str) -> Example:
    random = np.random.default_rng(len(key))
    waveform = (random.standard_normal(samples) * 2000).astype(np.int16)
    return Example(key=key, shard="s", index=0, epoch=1, waveform=waveform, **labels)


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


def test_faster_is_shorter_and_higher() -> None:
    rate = 16000
    tone = np.sin(2 * np.pi * 400 * np.arange(rate) / rate).astype(np.float32)
    faster = played(tone, 1.25)
    assert len(faster) == rate * 4 // 5
    assert np.abs(np.fft.rfft(faster)).argmax() * rate / len(faster) == pytest.approx(500, abs=2)


def test_a_room_goes_on_sounding_as_loud_and_as_long() -> None:
    rate, click = 16000, np.zeros(16000, np.float32)
    click[100] = 1.0
    heard = in_a_room(click, 0.4, rate, np.random.default_rng(0))
    assert heard.shape == click.shape
    assert np.sum(heard**2) == pytest.approx(1.0, rel=1e-3)
    after_s = np.array([0.01, 0.2, 0.38])
    levels = [np.abs(heard[100 + int(s * rate) :][:300]).mean() for s in after_s]
    assert 20 * np.log10(levels[0] / levels[1]) == pytest.approx(60 * 0.19 / 0.4, abs=3)
    assert np.abs(heard[100 + int(0.41 * rate) :]).max() < 1e-6


def test_speed_and_room_are_drawn_from_the_clip_and_stay_in_the_window() -> None:
    make = batcher(speed=0.2, reverberation_s=0.5)
    a, bb = clip("a"), clip("bb")
    assert torch.equal(make.batch([a, bb]).mel[1], make.batch([bb]).mel[0])
    assert not torch.equal(make.batch([a]).mel, batcher().batch([a]).mel)


def test_intensity_is_a_share_in_any_corpus() -> None:
    words = {"strong": 1.0, "normal": 0.5, "low": 1 / 3, "0.25": 0.25, "": 1.0, "unspecified": 1.0}
    assert [intensity_of(word) for word in words] == list(words.values())
    felt = batcher().batch([], [clip("a", emotion="happy", intensity="low")]).intensity
    assert felt.tolist() == pytest.approx([1 / 3])


def test_faces_are_as_many_as_there_are_and_mirrored_at_random() -> None:
    make = batcher()
    make.most_faces, make.face_px = 3, 4
    ramp = np.tile(np.arange(4, dtype=np.uint8) * 40, (2, 4, 1))
    clips = [replace(clip(key), faces=ramp.ravel()) for key in ("a", "bb", "ccc", "dddd", "eeeee")]
    batch = make.batch([*clips, clip("without")])
    assert batch.seen.tolist() == [[True, True, False]] * 5 + [[False] * 3]
    risen = (batch.faces[:5, 0, 0, 3] > batch.faces[:5, 0, 0, 0]).tolist()
    assert {True, False} == set(risen)
    faces, _ = make.seen(clips)
    torch.testing.assert_close(
        faces[:, :2] * 255, torch.from_numpy(ramp).float().expand(5, 2, 4, 4)
    )
    assert make.batch([]).faces.shape == (1, 3, 4, 4)
