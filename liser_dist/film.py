"""A film of any length -> its sound and pictures on one clock, never more than a moment of them.

Seconds are counted from where the film begins, whichever stream comes first. Containers that say
when each packet is to be shown are believed: edit lists, late starts and gaps keep their place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Self

import av
import numpy as np
from numpy.typing import NDArray

from liser_dist.containers import failing_as, moving_picture, open_container
from liser_dist.errors import SampleError
from liser_dist.records import Reason

RATE_HZ = 16000  # of the sound, mono
JITTER_S = 0.02  # codec frames that are out of step by less follow each other
BACK_S = 0.5  # a film whose time goes back by more is two films: nobody knows what belongs where
BEFORE_ALL_S = 10.0  # a place before every beginning
PREROLL_S = 1.0  # of sound before a place that is looked for: codecs need some to be right


@dataclass(frozen=True, slots=True)
class Sound:
    """A stretch of it."""

    start_s: float
    samples: NDArray[np.int16]  # [n], mono, RATE_HZ


@dataclass(frozen=True, slots=True)
class Picture:
    """One frame, as it was decoded."""

    time_s: float
    frame: Any  # av.VideoFrame


class Film:
    """A film that is open.

    Attributes:
        length_s: what the container says; infinite where it does not.

    Raises:
        SampleError: UNREADABLE, NO_VIDEO or NO_AUDIO; later, while it plays, UNREADABLE.
    """

    def __init__(self, container: Any, sound_alone: bool) -> None:
        self._container = container
        self._picture = moving_picture(container)
        self._sound = container.streams.best("audio")
        if self._picture is None and not sound_alone:
            raise SampleError(Reason.NO_VIDEO)
        if self._sound is None:
            raise SampleError(Reason.NO_AUDIO)
        for stream in (self._picture, self._sound):
            if stream is not None and stream.codec_context is None:
                raise SampleError(Reason.UNREADABLE, "no decoder for one of its streams")
        if self._picture is not None:
            self._picture.codec_context.thread_count = 1
        self._start_s = (container.start_time or 0) / av.time_base
        duration = container.duration
        self.length_s = duration / av.time_base if duration else float("inf")

    @classmethod
    @contextmanager
    def opened(cls, stream: IO[bytes], sound_alone: bool = False) -> Iterator[Self]:
        """From a stream that can be sought in. `sound_alone`: it need not have a picture."""
        with failing_as(Reason.UNREADABLE):
            container = open_container(stream)
        with container:
            yield cls(container, sound_alone)

    def play(self, start_s: float = 0.0, end_s: float = float("inf")) -> Iterator[Sound | Picture]:
        """Sound and pictures from about `start_s`, maybe earlier, until both are past `end_s`."""
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
            for shown in self._decode(packet, resampler):
                time_s, kind = _time_of(shown), type(shown)
                if time_s < last_s[kind] - BACK_S:
                    raise SampleError(
                        Reason.UNREADABLE, f"time jumps back from {last_s[kind]:.1f} s"
                    )
                last_s[kind] = max(last_s[kind], time_s)
                if time_s > end_s:
                    past.add(stream)
                    break
                yield shown
            if len(past) == len(streams):
                return

    def _seek(self, start_s: float) -> None:
        """To a place from which the picture at `start_s` can be decoded, and some sound before it.

        Containers without an index land anywhere, behind the key frame that is needed as well:
        then further back, to the very beginning at last.
        """
        back_s = PREROLL_S
        while back_s < start_s:
            self._container.seek(round((start_s - back_s + self._start_s) * av.time_base))
            if self._first_picture_s() <= start_s:
                self._container.seek(round((start_s - back_s + self._start_s) * av.time_base))
                return
            back_s *= 4
        try:
            self._container.seek(round((self._start_s - BEFORE_ALL_S) * av.time_base))
        except av.error.PermissionError:  # as AVI and FLV answer to a place that they do not have
            self._container.seek(round(self._start_s * av.time_base))

    def _first_picture_s(self) -> float:
        """When the next picture is shown that can be decoded; where there are none, at once."""
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
            return  # a moment of a long film: what is missing counts as silence, or as no picture
        for frame in frames:
            if frame.time is None:
                continue  # nobody knows where it belongs
            if packet.stream is self._picture:
                yield Picture(frame.time - self._start_s, frame)
            else:
                for part in resampler.resampled(frame):
                    yield Sound(float(part.time) - self._start_s, part.to_ndarray()[0])


class _Resampler:
    """Any sound -> RATE_HZ mono, also when it changes on its way."""

    def __init__(self) -> None:
        self._of: tuple[str, str, int] | None = None

    def resampled(self, frame: Any) -> Sequence[Any]:
        is_of = frame.format.name, frame.layout.name, frame.sample_rate
        if is_of != self._of:
            self._of = is_of
            self._resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE_HZ)
        parts: Sequence[Any] = self._resampler.resample(frame)
        return parts


def _time_of(shown: Sound | Picture) -> float:
    return shown.start_s if isinstance(shown, Sound) else shown.time_s


def join_sound(parts: Sequence[Sound], start_s: float, end_s: float) -> NDArray[np.int16]:
    """[samples] from start to end, each part in its place; zeros where there is none."""
    joined = np.zeros(max(0, round((end_s - start_s) * RATE_HZ)), np.int16)
    follows = None
    for part in parts:
        first = round((part.start_s - start_s) * RATE_HZ)
        if follows is not None and abs(first - follows) < JITTER_S * RATE_HZ:
            first = follows
        follows = first + len(part.samples)
        heard = part.samples[max(0, -first) : max(0, len(joined) - first)]
        joined[max(0, first) : max(0, first) + len(heard)] = heard
    return joined
