"""Reads the sound and the pictures of a media file of any length, on one time line.

Only a short part of the file is in memory at a time. Seconds count from where the file begins,
whichever stream comes first. The container's presentation times are used, so that
sound and pictures stay in step despite edit lists, late starts and gaps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Self

import av
import numpy as np
from numpy.typing import NDArray

from liser_dist.data.media import failing_as, find_video_stream, open_container
from liser_dist.errors import SampleError
from liser_dist.records import Reason

SOUND_RATE_HZ = 16000  # all sound is resampled to this, mono
_JITTER_S = 0.02  # parts of sound that are out of step by less follow each other directly
_MAX_STEP_BACK_S = 0.5  # a file whose time goes back further holds two films and is rejected
_BEFORE_START_S = 10.0  # how far before the first time stamp the earliest seek goes
_PREROLL_S = 1.0  # codecs need some sound before a seek target to decode it correctly


@dataclass(frozen=True, slots=True)
class Sound:
    """A stretch of sound: mono samples [n] at SOUND_RATE_HZ."""

    start_s: float
    samples: NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Picture:
    """One decoded frame (an `av.VideoFrame`) and when it is shown."""

    time_s: float
    frame: Any


class MediaReader:
    """Plays an open media file.

    Attributes:
        length_s: length by the container's header; infinite if the header does not say.

    Raises:
        SampleError: UNREADABLE, NO_VIDEO or NO_AUDIO; `play` raises UNREADABLE, too.
    """

    def __init__(self, container: Any, *, require_picture: bool) -> None:
        self._container = container
        self._picture = find_video_stream(container)
        self._sound = container.streams.best("audio")
        if self._picture is None and require_picture:
            raise SampleError(Reason.NO_VIDEO)
        if self._sound is None:
            raise SampleError(Reason.NO_AUDIO)
        for stream in (self._picture, self._sound):
            if stream is not None and stream.codec_context is None:
                raise SampleError(
                    Reason.UNREADABLE,
                    f"FFmpeg has no decoder for {stream.type} stream {stream.index}",
                )
        if self._picture is not None:
            self._picture.codec_context.thread_count = 1
        self._start_s = (container.start_time or 0) / av.time_base
        duration = container.duration
        self.length_s = duration / av.time_base if duration else float("inf")

    @classmethod
    @contextmanager
    def opened(cls, stream: IO[bytes], *, require_picture: bool = True) -> Iterator[Self]:
        """Open a seekable stream for the length of a `with` block."""
        with failing_as(Reason.UNREADABLE):
            container = open_container(stream)
        with container:
            yield cls(container, require_picture=require_picture)

    def play(self, start_s: float = 0.0, end_s: float = float("inf")) -> Iterator[Sound | Picture]:
        """Yield sound and pictures from `start_s` or earlier until both are past `end_s`."""
        with failing_as(Reason.UNREADABLE):
            yield from self._play(start_s, end_s)

    def _play(self, start_s: float, end_s: float) -> Iterator[Sound | Picture]:
        self._seek(start_s)
        resampler = _Resampler()
        last_s = dict.fromkeys((Sound, Picture), float("-inf"))
        streams = [stream for stream in (self._picture, self._sound) if stream is not None]
        past: set[Any] = set()
        for packet in self._container.demux(streams):
            stream = packet.stream
            if stream in past:
                continue
            for part in self._decode(packet, resampler):
                time_s, kind = _start_of(part), type(part)
                if time_s < last_s[kind] - _MAX_STEP_BACK_S:
                    raise SampleError(
                        Reason.UNREADABLE,
                        f"timestamps jump back from {last_s[kind]:.1f} s to {time_s:.1f} s",
                    )
                last_s[kind] = max(last_s[kind], time_s)
                if time_s > end_s:
                    past.add(stream)
                    break
                yield part
            if len(past) == len(streams):
                return

    def _seek(self, start_s: float) -> None:
        """Seek to where the picture at `start_s`, and some sound before it, can be decoded.

        Containers without an index may land behind the key frame that is needed. Then the seek is
        repeated further back, finally at the beginning.
        """
        back_s = _PREROLL_S
        while back_s < start_s:
            self._container.seek(round((start_s - back_s + self._start_s) * av.time_base))
            if self._first_picture_s() <= start_s:
                self._container.seek(round((start_s - back_s + self._start_s) * av.time_base))
                return
            back_s *= 4
        try:
            self._container.seek(round((self._start_s - _BEFORE_START_S) * av.time_base))
        except av.error.PermissionError:  # raised by AVI and FLV before their first time stamp
            self._container.seek(round(self._start_s * av.time_base))

    def _first_picture_s(self) -> float:
        """Return the time of the next frame that can be decoded; 0 for a file without pictures."""
        if self._picture is None:
            return 0.0
        frames = (
            frame for frame in self._container.decode(self._picture) if frame.time is not None
        )
        first = next(frames, None)
        return float("inf") if first is None else first.time - self._start_s

    def _decode(self, packet: Any, resampler: _Resampler) -> Iterator[Sound | Picture]:
        try:
            frames = packet.decode()
        except MemoryError:
            raise
        except av.error.FFmpegError:
            return  # a damaged moment of a long film counts as silence, or as no picture
        for frame in frames:
            if frame.time is None:
                continue  # without a time it cannot be placed
            if packet.stream is self._picture:
                yield Picture(frame.time - self._start_s, frame)
            else:
                for part in resampler.resample(frame):
                    yield Sound(float(part.time) - self._start_s, part.to_ndarray()[0])


class _Resampler:
    """Resamples any sound to SOUND_RATE_HZ mono, also if its format changes on the way."""

    def __init__(self) -> None:
        self._format: tuple[str, str, int] | None = None

    def resample(self, frame: Any) -> Sequence[Any]:
        frame_format = frame.format.name, frame.layout.name, frame.sample_rate
        if frame_format != self._format:
            self._format = frame_format
            self._resampler = av.AudioResampler(format="s16", layout="mono", rate=SOUND_RATE_HZ)
        parts: Sequence[Any] = self._resampler.resample(frame)
        return parts


def _start_of(part: Sound | Picture) -> float:
    return part.start_s if isinstance(part, Sound) else part.time_s


def join_sound(parts: Sequence[Sound], start_s: float, end_s: float) -> NDArray[np.int16]:
    """Return the samples from start to end, each part at its time, with zeros in the gaps."""
    joined = np.zeros(max(0, round((end_s - start_s) * SOUND_RATE_HZ)), np.int16)
    expected = None
    for part in parts:
        first = round((part.start_s - start_s) * SOUND_RATE_HZ)
        if expected is not None and abs(first - expected) < _JITTER_S * SOUND_RATE_HZ:
            first = expected
        expected = first + len(part.samples)
        inside = part.samples[max(0, -first) : max(0, len(joined) - first)]
        joined[max(0, first) : max(0, first) + len(inside)] = inside
    return joined
