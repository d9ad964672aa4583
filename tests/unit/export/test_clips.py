"""Clips for an export: windows without padding, and segments of many lengths."""

import numpy as np

from liser_dist.config.stream import ClipSpec
from liser_dist.export.clips import (
    MAX_SEGMENT_S,
    MIN_SEGMENT_S,
    fill_windows,
    join_segments,
    min_audio_s,
)
from liser_dist.records import Clip

RATE_HZ = 4000


def clip(number: int, seconds: float) -> Clip:
    waveform = np.full(round(seconds * RATE_HZ), number, np.int16)
    return Clip(key=str(number), shard="s", index=number, epoch=0, waveform=waveform)


def test_a_short_clip_is_filled_with_audio_of_the_next_ones_and_the_last_with_the_first() -> None:
    spec = ClipSpec(sample_rate_hz=RATE_HZ, window_s=1.0)
    windows = fill_windows([clip(1, 1.0), clip(2, 0.25), clip(3, 0.5)], spec)
    assert [np.unique(window.waveform).tolist() for window in windows] == [[1], [1, 2, 3], [1, 3]]
    assert {len(window.waveform) for window in windows} == {RATE_HZ}


def test_segments_span_all_lengths_and_start_with_successive_clips() -> None:
    segments = list(join_segments([clip(1, 1.0), clip(2, 1.0)], 3, RATE_HZ))
    seconds = [len(segment) / RATE_HZ for segment in segments]
    assert seconds[0] == MIN_SEGMENT_S
    assert seconds[-1] == MAX_SEGMENT_S
    assert seconds == sorted(seconds)
    first_samples = [round(float(segment[0]) * 32768) for segment in segments]
    assert first_samples == [1, 2, 1]


def test_audio_shorter_than_the_graph_accepts_is_never_allowed() -> None:
    assert min_audio_s(ClipSpec(min_duration_s=0.0)) == 0.25
    assert min_audio_s(ClipSpec(min_duration_s=0.5)) == 0.5
    assert min_audio_s(ClipSpec(min_duration_s=5.0, window_s=3.0)) == 3.0
