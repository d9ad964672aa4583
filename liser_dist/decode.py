"""Sample -> Clip: one window of a clip's sound and faces, decoded in a guarded child process.

`decode_clip` does it, in the process that calls it:

1. the container's header: streams, how long each should be, when each starts (PyAV);
2. the sound, and when each frame is shown (Decord); less than the header says is a cut-off file;
3. one window on the clock that sound and frames share, chosen where both run;
4. the window's sound, and a few of its frames, cropped to one face.

`ClipDecoder` has it done by a child process with limits: Decord gives a damaged file the means to
kill whoever decodes it.
"""

from __future__ import annotations

import io
import itertools
import logging
import math
import signal
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from pebble import ProcessExpired, ProcessFuture, ProcessPool

from liser_dist.child import ChildContext, enter_child
from liser_dist.errors import SampleError
from liser_dist.faces import Frames, check_detector, crop_faces, parse_boxes
from liser_dist.records import Clip, Reason, Sample
from liser_dist.spec import ClipSpec
from liser_dist.speech import speech_s

# decord2 loads every NVIDIA library that lies beside it, which only its CUDA build needs: two
# seconds and 650 MB where torch is installed. A package that is None counts as not installed.
_nvidia = sys.modules.get("nvidia")
sys.modules["nvidia"] = None  # type: ignore[assignment]
try:
    import decord
finally:
    del sys.modules["nvidia"]
    if _nvidia is not None:
        sys.modules["nvidia"] = _nvidia

log = logging.getLogger(__name__)
decord.logging.set_level(decord.logging.QUIET)

Times = NDArray[np.float64]  # [n] seconds since the clip began

MISSING_S = 0.3  # less than the header says by so much is a cut-off file; codec frames are shorter
DETAIL_CHARACTERS = 200
OUT_OF_MEMORY = ("bad_alloc", "Cannot allocate memory", "Insufficient memory")

CLIPS_PER_CHILD = 2000  # Decord's leaks end with the child
CLIPS_AHEAD = 2  # with the child beside the one that it decodes
COPIES = 4  # of the file, that receiving and opening it make
START_LIMIT_S = 60.0  # for a child to start, on a machine that is busy


def decode_clip(sample: Sample, spec: ClipSpec, start_share: float) -> Clip:
    """One window of a sample, decoded in this process.

    Args:
        start_share: 0..1, where the window lies in a clip that is longer: at the first place that
            it can have, at the last, or between.

    Raises:
        SampleError: the sample is unusable, and why.
        MemoryError: it takes more memory than there is.
        SpecError: `face_detector` cannot be loaded.
        ImportError: a library that the spec asks for is not installed.
    """
    boxes = parse_boxes(sample.faces)
    header = _read_header(sample.video)
    sound = _read_sound(sample.video, spec.sample_rate_hz)
    reader, shown = _index_frames(sample.video, header)
    start_s, length_s = _place_window(header, sound, shown, spec, start_share)
    waveform = _cut_sound(sound, header.sound_start_s, start_s, length_s, spec)
    wanted: Times = start_s + (np.arange(spec.faces, dtype=np.float64) + 0.5) * (
        length_s / spec.faces
    )
    frames = _read_frames(sample.video, reader, header, shown, wanted)
    faces, has_face = crop_faces(frames, wanted, boxes, spec)
    return Clip(
        **sample.provenance(),
        waveform=waveform,
        faces=faces,
        has_face=has_face,
        emotion=sample.emotion,
        speaker=sample.speaker,
    )


# ---------------------------------------------------------------- what the header says


@dataclass(frozen=True, slots=True)
class _Header:
    """Seconds, all but `start_s` from where the clip begins; infinite = it does not say."""

    frame_bytes: int  # of one frame, as RGB
    start_s: float  # of the clip, on the container's own clock
    sound_start_s: float
    video_start_s: float
    sound_end_s: float
    video_end_s: float
    end_s: float


def _read_header(video: bytes) -> _Header:
    """By PyAV, which no damaged file has crashed."""
    if not video:
        raise SampleError(Reason.EMPTY)
    with _failing_as(Reason.UNREADABLE), _open(video) as container:
        picture = _moving_picture(container)
        sound = container.streams.best("audio")
        if picture is None:
            raise SampleError(Reason.NO_VIDEO)
        if sound is None:
            raise SampleError(Reason.NO_AUDIO)
        start_s = (container.start_time or 0) / av.time_base
        duration = container.duration
        return _Header(
            frame_bytes=3 * picture.width * picture.height,
            start_s=start_s,
            sound_start_s=max(0.0, _start_s(sound, start_s)),
            video_start_s=_start_s(picture, start_s),
            sound_end_s=_end_s(sound, start_s),
            video_end_s=_end_s(picture, start_s),
            end_s=duration / av.time_base if duration else math.inf,
        )


def _open(video: bytes) -> Any:
    # Titles in other encodings than UTF-8 are no reason to refuse a file.
    return av.open(io.BytesIO(video), metadata_errors="replace")


def _moving_picture(container: Any) -> Any:
    """The stream that Decord would decode, unless it is the cover of a sound file."""
    stream = container.streams.best("video")
    cover = av.stream.Disposition.attached_pic
    return None if stream is None or stream.disposition & cover else stream


def _start_s(stream: Any, clip_start_s: float) -> float:
    ticks = stream.start_time
    return 0.0 if ticks is None else float(ticks * stream.time_base) - clip_start_s


def _end_s(stream: Any, clip_start_s: float) -> float:
    ticks = stream.duration
    return _start_s(stream, clip_start_s) + float(ticks * stream.time_base) if ticks else math.inf


# ---------------------------------------------------------------- sound and frames


def _read_sound(video: bytes, sample_rate_hz: int) -> NDArray[np.float32]:
    """The whole sound stream, mono, [samples] in -1..1, from its own start."""
    with _failing_as(Reason.UNREADABLE):
        reader = decord.AudioReader(io.BytesIO(video), sample_rate=sample_rate_hz, mono=True)
        # Its public way in builds a list of every sample's number: three times as slow.
        sound: NDArray[np.float32] = reader._array[0]
        return sound


def _index_frames(video: bytes, header: _Header) -> tuple[Any, NDArray[np.float64]]:
    """Decord's reader, and [frames, 2] when each frame appears and when it goes."""
    with _failing_as(Reason.UNREADABLE):
        reader = decord.VideoReader(io.BytesIO(video), num_threads=1)
        times = reader.get_frame_timestamp(np.arange(len(reader)))
        # Decord counts from where the stream begins, which may be later than the clip does.
        shown: NDArray[np.float64] = times.astype(np.float64) + header.video_start_s
        if not np.isfinite(shown).all():
            raise SampleError(Reason.UNREADABLE, "frames without a time")
        return reader, shown


def _place_window(
    header: _Header,
    sound: NDArray[np.float32],
    shown: NDArray[np.float64],
    spec: ClipSpec,
    start_share: float,
) -> tuple[float, float]:
    """Start and length of the window, in seconds.

    It ends where sound or frames end, whichever is first. It may begin before the sound does.
    """
    sound_end_s = header.sound_start_s + len(sound) / spec.sample_rate_hz
    video_end_s = float(shown[:, 1].max())
    found = {"sound": sound_end_s, "video": video_end_s, "clip": max(sound_end_s, video_end_s)}
    said = {"sound": header.sound_end_s, "video": header.video_end_s, "clip": header.end_s}
    for name, end_s in found.items():
        if math.isfinite(said[name]) and end_s < said[name] - MISSING_S:
            detail = f"{name} ends after {end_s:.2f} s of {said[name]:.2f} s"
            raise SampleError(Reason.TRUNCATED, detail)
    # The last codec frame sounds on behind the end.
    end_s = min(sound_end_s, video_end_s, header.sound_end_s)
    if end_s < spec.min_duration_s or end_s <= 0:
        raise SampleError(Reason.TOO_SHORT, f"{end_s:.2f} s of sound and frames")
    length_s = min(spec.window_s, end_s)
    return start_share * (end_s - length_s), length_s


def _cut_sound(
    sound: NDArray[np.float32],
    sound_start_s: float,
    start_s: float,
    length_s: float,
    spec: ClipSpec,
) -> NDArray[np.int16]:
    """The window's sound; zeros where it begins before the sound does."""
    first = round((start_s - sound_start_s) * spec.sample_rate_hz)
    count = round(length_s * spec.sample_rate_hz)
    heard = sound[max(0, first) : max(0, first + count)]
    pcm = np.clip(np.rint(heard * 32768), -32768, 32767).astype(np.int16)
    if pcm.size == 0 or pcm.min() == pcm.max():
        raise SampleError(Reason.SILENT, f"from {start_s:.2f} s on")
    waveform = np.concatenate([np.zeros(min(count, max(0, -first)), np.int16), pcm])
    if spec.min_speech_s > 0:
        heard_s = speech_s(waveform, spec.sample_rate_hz)
        if heard_s < spec.min_speech_s:
            raise SampleError(Reason.NO_SPEECH, f"{heard_s:.2f} s of speech")
    return waveform


def _read_frames(
    video: bytes, reader: Any, header: _Header, shown: NDArray[np.float64], wanted: Times
) -> Frames:
    """The frames nearest to the times wanted, [n, height, width, 3] RGB, upright."""
    # Decord aborts where it gets no memory: see first whether there is enough for the frames, its
    # copy of them, and those that its decoder holds.
    np.empty(header.frame_bytes * (2 * len(wanted) + 16), np.uint8)
    with _failing_as(Reason.UNREADABLE):
        # Decord numbers frames that an edit list hides, but does not get them from the decoder:
        # all after them would come late by as many.
        if shown[:, 0].min() >= header.video_start_s - 1e-3:
            nearest = np.abs(shown[:, 0] - wanted[:, None]).argmin(axis=1)
            try:
                frames: Frames = reader.get_batch(nearest).asnumpy()
                return frames
            except Exception as error:
                # As it does on some sound HEVC files.
                _raise_memory_error(error)
                log.debug("Decord reads no frames (%s): by PyAV then", _one_line(error))
        return _read_frames_by_av(video, wanted + header.start_s)


def _read_frames_by_av(video: bytes, wanted: Times) -> Frames:
    """The same, for times on the container's own clock."""
    with _open(video) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        frames = (frame for frame in container.decode(stream) if frame.time is not None)
        picked = _pick_nearest(frames, wanted)
        return np.stack([_upright(frame) for frame in picked])


def _pick_nearest(frames: Iterator[Any], wanted: Times) -> list[Any]:
    """For each time wanted, in order, the frame that is nearest."""
    picked: list[Any] = []
    last = next(frames, None)
    if last is None:
        raise SampleError(Reason.UNREADABLE, "no frames")
    for frame in itertools.chain([last], frames):
        while len(picked) < len(wanted) and frame.time >= wanted[len(picked)]:
            time_s = wanted[len(picked)]
            picked.append(last if time_s - last.time <= frame.time - time_s else frame)
        if len(picked) == len(wanted):
            return picked
        last = frame
    return picked + [last] * (len(wanted) - len(picked))


def _upright(frame: Any) -> NDArray[np.uint8]:
    picture = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(picture, round(frame.rotation / 90)))


# ---------------------------------------------------------------- failures


@contextmanager
def _failing_as(reason: Reason) -> Iterator[None]:
    """The libraries' exceptions, which are of many types, as one SampleError."""
    try:
        yield
    except (SampleError, MemoryError, ImportError):
        raise
    except Exception as error:
        _raise_memory_error(error)
        # Without its cause: some carry the whole file.
        raise SampleError(reason, _one_line(error)) from None


def _raise_memory_error(error: Exception) -> None:
    """Native code that gets no memory says so in its own words."""
    if any(words in str(error) for words in OUT_OF_MEMORY):
        raise MemoryError(_one_line(error)) from None


def _one_line(error: object) -> str:
    printable = "".join(c if c.isprintable() else " " for c in str(error)[: 5 * DETAIL_CHARACTERS])
    return " ".join(printable.split())[:DETAIL_CHARACTERS]


def _rejected(sample: Sample, reason: str, detail: object) -> Clip:
    why = {"reason": str(reason), "detail": _one_line(detail)}
    return Clip(**{**sample.provenance(), **why}, emotion=sample.emotion, speaker=sample.speaker)


# ---------------------------------------------------------------- the guard


@dataclass(frozen=True, slots=True)
class _Task:
    sample: Sample
    start_share: float
    pool: ProcessPool
    clip: ProcessFuture[Clip]


class ClipDecoder:
    """Decodes in a child process with limits on memory and time. To be used by one thread.

    A clip that kills the child, or is ended with it at a limit, is lost alone: those that wait
    behind it go to the next child. The child ends with this process, whatever either is doing.

    Attributes:
        children_lost: how many children did not outlive a clip.

    Raises:
        SpecError: `face_detector` cannot be loaded.
    """

    def __init__(self, spec: ClipSpec, clips_per_child: int = CLIPS_PER_CHILD) -> None:
        check_detector(spec)
        self.children_lost = 0
        self._spec = spec
        self._clips_per_child = clips_per_child
        self._pool = self._new_pool()
        self._closed = False

    def decode(self, sample: Sample, start_share: float) -> Clip:
        """One clip; rejected with its reason where the sample is unusable."""
        return next(self.decode_all([(sample, start_share)]))

    def decode_all(self, samples: Iterable[tuple[Sample, float]]) -> Iterator[Clip]:
        """Clips in the order of their (sample, start_share), the child always busy."""
        tasks: deque[_Task] = deque()
        for sample, start_share in samples:
            tasks.append(self._schedule(sample, start_share))
            if len(tasks) > CLIPS_AHEAD:
                yield self._finish(tasks.popleft())
        while tasks:
            yield self._finish(tasks.popleft())

    def close(self) -> None:
        """Ends the child. Twice does no harm."""
        if not self._closed:
            self._closed = True
            self._pool.stop()
            self._pool.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _new_pool(self) -> ProcessPool:
        return ProcessPool(
            max_workers=1,
            max_tasks=self._clips_per_child,
            initializer=_enter_child,
            initargs=(self._spec.decode_limit_bytes,),
            context=ChildContext(preload=__name__),
        )

    def _schedule(self, sample: Sample, start_share: float) -> _Task:
        assert not self._closed, "this decoder is closed"
        clip: ProcessFuture[Clip] = ProcessFuture()
        if sample.rejected:
            clip.set_result(_rejected(sample, sample.reason, sample.detail))
        elif COPIES * len(sample.video) > self._spec.decode_limit_bytes:
            # The child would die while it receives it.
            size = f"a file of {len(sample.video):,} bytes"
            clip.set_result(_rejected(sample, Reason.TOO_LARGE, size))
        else:
            clip = self._send(sample, start_share)
        return _Task(sample, start_share, self._pool, clip)

    def _send(self, sample: Sample, start_share: float) -> ProcessFuture[Clip]:
        arguments = (sample, self._spec, start_share)
        limit_s = self._spec.decode_limit_s
        try:
            return self._pool.schedule(_decode_or_reject, args=arguments, timeout=limit_s)
        except RuntimeError:  # pebble's word for a pool that broke
            self._replace(self._pool)
            return self._pool.schedule(_decode_or_reject, args=arguments, timeout=limit_s)

    def _finish(self, task: _Task) -> Clip:
        if task.pool is not self._pool and not task.clip.done():
            task = self._schedule(task.sample, task.start_share)  # it never left the old pool
        try:
            return self._wait(task)
        except BrokenProcessPool:
            # The child died between two clips, so that it was no clip's fault: once more.
            self._replace(task.pool)
            return self._wait(self._schedule(task.sample, task.start_share))

    def _wait(self, task: _Task) -> Clip:
        """The clip that the child hands back, or why it did not.

        Raises:
            BrokenProcessPool: the child died while it had no clip.
        """
        try:
            return task.clip.result(self._spec.decode_limit_s + START_LIMIT_S)
        except ProcessExpired as error:
            self.children_lost += 1
            return _rejected(task.sample, Reason.CRASHED, _exit_words(error.exitcode))
        except TimeoutError:
            self.children_lost += 1
            if not task.clip.done():  # nor did pebble end it: the task was lost on its way
                self._replace(task.pool)
            limit = f"not decoded within {self._spec.decode_limit_s:g} s"
            return _rejected(task.sample, Reason.TIMEOUT, limit)

    def _replace(self, broken: ProcessPool) -> None:
        """A new pool for a broken one, once for all the tasks that were in it."""
        if broken is self._pool:
            self._pool = self._new_pool()
            broken.stop()
            broken.join()


def _exit_words(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


# ---------------------------------------------------------------- in the child


def _enter_child(limit_bytes: int) -> None:
    cv2.setNumThreads(1)
    enter_child(limit_bytes)


def _decode_or_reject(sample: Sample, spec: ClipSpec, start_share: float) -> Clip:
    try:
        return decode_clip(sample, spec, start_share)
    except SampleError as error:
        return _rejected(sample, error.reason, error.detail)
    except MemoryError as error:
        return _rejected(sample, Reason.TOO_LARGE, error)
