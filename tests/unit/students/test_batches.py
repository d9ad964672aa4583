"""Random choices for a clip depend on the clip, not on its batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from liser_dist.config.student import AugmentSpec
from liser_dist.records import Example
from liser_dist.students.batches import NO_LABEL, Batcher, intensity_of, labelled_batch
from liser_dist.students.features import AudioInput


def clip(key: str, samples: int = 8000, **labels: str) -> Example:
    random = np.random.default_rng(len(key))
    waveform = (random.standard_normal(samples) * 2000).astype(np.int16)
    return Example(key=key, shard="s", index=0, epoch=1, waveform=waveform, **labels)


def batcher(**augment: float) -> Batcher:
    return Batcher(AudioInput(16000, 40, 0.5), ["sad", "happy"], {}, AugmentSpec(**augment), 7)


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
    assert not batch.teachers["speech"].given.any()
    assert batch.frames.tolist() == [1]


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
    make.max_faces, make.face_px = 3, 4
    ramp = np.tile(np.arange(4, dtype=np.uint8) * 40, (2, 4, 1))
    clips = [replace(clip(key), faces=ramp.ravel()) for key in ("a", "bb", "ccc", "dddd", "eeeee")]
    batch = make.batch([*clips, clip("without")])
    assert batch.has_face.tolist() == [[True, True, False]] * 5 + [[False] * 3]
    risen = (batch.faces[:5, 0, 0, 3] > batch.faces[:5, 0, 0, 0]).tolist()
    assert {True, False} == set(risen)
    faces, _ = make.face_input(clips)
    torch.testing.assert_close(
        faces[:, :2] * 255, torch.from_numpy(ramp).float().expand(5, 2, 4, 4)
    )
    assert make.batch([]).faces.shape == (1, 3, 4, 4)


def test_labelled_batches_walk_through_shuffles_of_all_clips() -> None:
    clips = list("abcde")
    steps = [labelled_batch(clips, 3, step, seed=1, epochs=9) for step in range(5)]
    walk = [clip for step in steps for clip in step]
    assert [sorted(walk[first : first + 5]) for first in (0, 5, 10)] == [clips] * 3
    assert steps == [labelled_batch(clips, 3, step, seed=1, epochs=9) for step in range(5)]
    assert sorted(labelled_batch(clips, 9, 0, seed=1, epochs=9)) == clips
    assert labelled_batch([], 9, 0, seed=1, epochs=9) == []


def test_an_example_with_a_stored_spectrogram_has_the_input_of_its_waveform() -> None:
    audio = AudioInput(16000, 40, 0.5)
    waveform_clip = clip("a", samples=5000)
    stored = audio.replace_waveform(waveform_clip)
    assert stored.waveform.size == 0
    make = batcher()
    mel, frames = make.audio_input([stored])
    expected, expected_frames = make.audio_input([waveform_clip])
    assert frames.tolist() == expected_frames.tolist() == [32]
    torch.testing.assert_close(mel[:, :32], expected[:, :32], atol=2e-3, rtol=2e-3)
    rejected = replace(waveform_clip, reason="silent")
    assert audio.replace_waveform(rejected) is rejected


def test_labelled_clips_are_used_a_limited_number_of_times() -> None:
    clips = list("abc")
    walk = [labelled_batch(clips, 2, step, seed=1, epochs=2) for step in range(5)]
    assert sorted(clip for step in walk for clip in step) == sorted(clips * 2)
    assert walk[3:] == [[], []]
