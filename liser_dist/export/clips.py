"""Reads and decodes the clips that an export is calibrated, compared, timed and scored on."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from liser_dist.config.stream import ClipSpec
from liser_dist.data.clip_decoder import ClipDecoder
from liser_dist.data.shard_list import Shard
from liser_dist.data.shard_order import shard_order
from liser_dist.data.shards import ShardVisit, read_samples
from liser_dist.export.onnx import MIN_AUDIO_S
from liser_dist.records import CENTRE_SHARE, Clip, Sample, to_floats

TIMED_CLIPS = 20  # clips that speed is measured on
MIN_SEGMENT_S, MAX_SEGMENT_S = 0.5, 30.0  # audio lengths that ONNX and torch are compared on
_MIN_CLIPS_PER_SHARD = 8
_Floats = NDArray[np.float32]


def read_calibration_clips(
    shards: Sequence[Shard], count: int, seed: int, spec: ClipSpec
) -> Iterator[Clip]:
    """Yield unlabelled clips: the first few of each shard, about `count` or more in total.

    Shards are visited in an order drawn from `seed`. Clips that cannot be decoded are skipped. Only
    the first TIMED_CLIPS keep their face crops, which are needed to time a face teacher.
    """
    per_shard = max(_MIN_CLIPS_PER_SHARD, math.ceil(count / len(shards)))
    samples = (
        sample
        for visit in shard_order(shards, 1, seed)
        for sample in islice(read_samples(visit, labelled=False), per_shard)
    )
    for number, clip in enumerate(_decode_centred(samples, spec)):
        yield clip if number < TIMED_CLIPS else replace(clip, faces=clip.faces[:0])


def read_scored_clips(
    shards: Iterable[Shard], emotions: Collection[str], spec: ClipSpec
) -> Iterator[Clip]:
    """Yield the labelled clips whose emotion is in `emotions`, with one face crop each."""
    samples = (
        sample
        for shard in shards
        for sample in read_samples(ShardVisit(0, shard.place))
        if sample.emotion in emotions
    )
    return _decode_centred(samples, spec.model_copy(update={"faces": 1}))


def _decode_centred(samples: Iterable[Sample], spec: ClipSpec) -> Iterator[Clip]:
    """Yield the centre window of each clip, as a run scores it; skip rejected and short clips."""
    with ClipDecoder(spec) as decoder:
        for clip in decoder.decode_all((sample, CENTRE_SHARE) for sample in samples):
            if not clip.rejected and len(clip.waveform) >= min_audio_s(spec) * spec.sample_rate_hz:
                yield clip


def min_audio_s(spec: ClipSpec) -> float:
    """Return the shortest audio, in seconds, that the exported student accepts."""
    return max(MIN_AUDIO_S, min(spec.min_duration_s, spec.window_s))


def join_segments(clips: Sequence[Clip], count: int, rate_hz: int) -> Iterator[_Floats]:
    """Yield `count` audio segments [samples] of MIN_SEGMENT_S to MAX_SEGMENT_S.

    Segment n starts with clip n; where that is too short, the next clips are appended.
    """
    lengths = np.geomspace(MIN_SEGMENT_S, MAX_SEGMENT_S, count) * rate_hz
    for first, length in enumerate(np.round(lengths).astype(int)):
        parts: list[_Floats] = []
        while sum(map(len, parts)) < length:
            parts.append(to_floats(clips[(first + len(parts)) % len(clips)].waveform))
        yield np.concatenate(parts)[:length]


def fill_windows(clips: Sequence[Clip], spec: ClipSpec) -> list[Clip]:
    """Return the clips with a full window of audio each; short ones borrow audio from the next."""
    length = round(spec.window_s * spec.sample_rate_hz)
    audio = np.concatenate([clip.waveform for clip in clips])
    starts = np.cumsum([0, *(len(clip.waveform) for clip in clips)])
    return [
        replace(clip, waveform=np.take(audio, np.arange(start, start + length), mode="wrap"))
        for clip, start in zip(clips, starts, strict=False)
    ]
