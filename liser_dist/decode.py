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

import ctypes
import fcntl
import io
import logging
import math
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, context, reduction
from typing import Any, Self

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from pebble import ProcessExpired, ProcessFuture, ProcessPool

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
    wanted = start_s + (np.arange(spec.faces) + 0.5) * (length_s / spec.faces)
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
    """Seconds; all but the first count from where the clip begins. Infinite = it does not say."""

    start_s: float  # of the clip, on the container's own clock
    sound_start_s: float
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
            start_s=start_s,
            sound_start_s=max(0.0, _seconds(sound, sound.start_time, start_s) - start_s),
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


def _seconds(stream: Any, ticks: int | None, unknown: float) -> float:
    return unknown if ticks is None else float(ticks * stream.time_base)


def _end_s(stream: Any, start_s: float) -> float:
    length_s = _seconds(stream, stream.duration or None, math.inf)
    return _seconds(stream, stream.start_time, start_s) + length_s - start_s


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
        shown: NDArray[np.float64] = times.astype(np.float64) - header.start_s
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
    with _failing_as(Reason.UNREADABLE):
        # Decord numbers frames that an edit list hides, but does not get them from the decoder:
        # all after them would come late by as many.
        if shown[:, 0].min() >= -1e-3:
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
    """The same, by seeking to the window's start and decoding to its end."""
    with _open(video) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        container.seek(math.floor(wanted[0] / stream.time_base), stream=stream)
        frames = (frame for frame in container.decode(stream) if frame.time is not None)
        picked = _pick_nearest(frames, wanted)
        return np.stack([_upright(frame) for frame in picked])


def _pick_nearest(frames: Iterator[Any], wanted: Times) -> list[Any]:
    """For each time wanted, in order, the frame that is nearest."""
    picked: list[Any] = []
    last: Any = None
    for frame in frames:
        while len(picked) < len(wanted) and frame.time >= wanted[len(picked)]:
            time_s = wanted[len(picked)]
            before = last is not None and time_s - last.time <= frame.time - time_s
            picked.append(last if before else frame)
        if len(picked) == len(wanted):
            return picked
        last = frame
    if last is None:
        raise SampleError(Reason.UNREADABLE, "no frame in the window")
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
    return Clip(
        **{**sample.provenance(), **why}, emotion=sample.emotion, speaker=sample.speaker
    )


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
            context=_ChildContext(),
        )

    def _schedule(self, sample: Sample, start_share: float) -> _Task:
        assert not self._closed, "this decoder is closed"
        arguments = (sample, self._spec, start_share)
        limit_s = self._spec.decode_limit_s
        try:
            clip = self._pool.schedule(_decode_or_reject, args=arguments, timeout=limit_s)
        except RuntimeError:  # pebble's word for a pool that broke
            self._replace(self._pool)
            clip = self._pool.schedule(_decode_or_reject, args=arguments, timeout=limit_s)
        return _Task(sample, start_share, self._pool, clip)

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


def _decode_or_reject(sample: Sample, spec: ClipSpec, start_share: float) -> Clip:
    try:
        return decode_clip(sample, spec, start_share)
    except SampleError as error:
        return _rejected(sample, error.reason, error.detail)
    except MemoryError as error:
        return _rejected(sample, Reason.TOO_LARGE, error)


class _ChildProcess(context.ForkServerProcess):
    """A process that does not load its parent's main module.

    In a Ray actor that is Ray's worker program: each child would import ray, 1 s, to no end.
    """

    _lock = threading.Lock()

    def start(self) -> None:
        names = vars(sys.modules["__main__"])
        with self._lock:
            hidden = {name: names.pop(name) for name in ("__file__", "__spec__") if name in names}
            names["__spec__"] = None
            try:
                super().start()
            finally:
                names.update(hidden)


class _ProcessLock:
    """Excludes other processes; what multiprocessing's RLock is to pebble, but the kernel's own.

    The kernel lets go of it when its holder is killed, and of the file when nobody is left, where
    a named semaphore would stay locked, and lie in /dev/shm for ever.
    """

    def __init__(self) -> None:
        self._file = os.memfd_create("decoder-lock")
        self._depth = 0

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        give_up = time.monotonic() + (math.inf if timeout is None else timeout)
        while self._depth == 0:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if not block or time.monotonic() > give_up:
                    return False
                time.sleep(0.001)
        self._depth += 1
        return True

    def release(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    def __getstate__(self) -> Any:
        return reduction.DupFd(self._file)

    def __setstate__(self, file: Any) -> None:
        self._file, self._depth = file.detach(), 0

    def __del__(self) -> None:
        os.close(self._file)


class _ChildContext(context.ForkServerContext):
    """Children are forked from a process that has the libraries loaded: the next is soon there."""

    Process = _ChildProcess

    def __init__(self) -> None:
        super().__init__()
        self.set_forkserver_preload([__name__])

    def RLock(self) -> Any:
        return _ProcessLock()


def _enter_child(limit_bytes: int) -> None:
    """What every child does first. Its last step is to take FFmpeg's and Decord's voice away."""
    _end_with_parent()
    # Not RLIMIT_AS: the libraries reserve gigabytes of address space that they never touch.
    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _keep_freed_memory()
    cv2.setNumThreads(1)
    _silence_native_code()


def _end_with_parent() -> None:
    """Be killed when the parent or the fork server is gone, also in the middle of a clip.

    The kernel sees to the fork server, which forked this process. The fork server itself lives as
    long as its children do, so a thread watches the process that asked for this one; the libraries
    let it run while they decode.
    """
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a child process only"

    def watch() -> None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def _keep_freed_memory() -> None:
    """Have glibc keep what a clip gave back for the next: a sixth of the time went to the kernel."""
    libc = ctypes.CDLL(None)
    m_trim_threshold, m_mmap_threshold = -1, -3
    libc.mallopt(m_mmap_threshold, 32 * 2**20)
    libc.mallopt(m_trim_threshold, 256 * 2**20)


def _silence_native_code() -> None:
    """Standard error goes to Python alone: FFmpeg's complaints can hold half the file."""
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
