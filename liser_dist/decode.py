"""Sample -> Clip: one window of a clip's sound and faces, decoded in the process that calls.

Decord gives a damaged file the means to kill whoever decodes it: `guard.py` has it done by a child.

1. the container's header: streams, how long each should be, when each starts (PyAV);
2. the sound, and when each frame is shown (Decord); less than the header says is a cut-off file;
3. one window on the clock that sound and frames share, chosen where both run;
4. the window's sound, and a few of its frames, cropped to one face.
"""

from __future__ import annotations

import io
import itertools
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from liser_dist.containers import (
    failing_as,
    moving_picture,
    one_line,
    open_container,
    raise_memory_error,
    upright,
)
from liser_dist.errors import SampleError
from liser_dist.faces import Frames, crop_faces, parse_boxes
from liser_dist.hiding import without
from liser_dist.records import Clip, Reason, Sample
from liser_dist.spec import ClipSpec
from liser_dist.speech import speech_s

# decord2 loads every NVIDIA library that lies beside it, which only its CUDA build needs: two
# seconds and 650 MB where torch is installed.
with without("nvidia"):
    import decord

log = logging.getLogger(__name__)
decord.logging.set_level(decord.logging.QUIET)

Times = NDArray[np.float64]  # [n] seconds since the clip began

MISSING_S = 0.3  # less than the header says by so much is a cut-off file; codec frames are shorter


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
    if spec.frames == "keyframes":
        wanted = _nearest_key_frames(reader, shown, wanted)
    times, copies = np.unique(wanted, return_inverse=True)
    frames = _read_frames(sample.video, reader, header, shown, times)
    faces, has_face = crop_faces(frames, times, boxes, spec)
    return Clip(
        **sample.provenance(),
        waveform=waveform,
        faces=faces[copies],
        has_face=has_face[copies],
        **sample.labels(),
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
    with failing_as(Reason.UNREADABLE), open_container(io.BytesIO(video)) as container:
        picture = moving_picture(container)
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


def _start_s(stream: Any, clip_start_s: float) -> float:
    ticks = stream.start_time
    return 0.0 if ticks is None else float(ticks * stream.time_base) - clip_start_s


def _end_s(stream: Any, clip_start_s: float) -> float:
    ticks = stream.duration
    return _start_s(stream, clip_start_s) + float(ticks * stream.time_base) if ticks else math.inf


# ---------------------------------------------------------------- sound and frames


def _read_sound(video: bytes, sample_rate_hz: int) -> NDArray[np.float32]:
    """The whole sound stream, mono, [samples] in -1..1, from its own start."""
    with failing_as(Reason.UNREADABLE):
        reader = decord.AudioReader(io.BytesIO(video), sample_rate=sample_rate_hz, mono=True)
        # Its public way in builds a list of every sample's number: three times as slow.
        sound: NDArray[np.float32] = reader._array[0]
        return sound


def _index_frames(video: bytes, header: _Header) -> tuple[Any, NDArray[np.float64]]:
    """Decord's reader, and [frames, 2] when each frame appears and when it goes."""
    with failing_as(Reason.UNREADABLE):
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
    """The window's sound; zeros where it begins before the sound does.

    Whether a clip is silent or without speech is judged on all of it: a verdict that hung on the
    window would differ from epoch to epoch.
    """
    pcm = np.clip(np.rint(sound * 32768), -32768, 32767).astype(np.int16)
    if pcm.size == 0 or pcm.min() == pcm.max():
        raise SampleError(Reason.SILENT)
    if spec.min_speech_s > 0:
        heard_s = speech_s(pcm, spec.sample_rate_hz)
        if heard_s < spec.min_speech_s:
            raise SampleError(Reason.NO_SPEECH, f"{heard_s:.2f} s of speech")
    first = round((start_s - sound_start_s) * spec.sample_rate_hz)
    count = round(length_s * spec.sample_rate_hz)
    heard = pcm[max(0, first) : max(0, first + count)]
    return np.concatenate([np.zeros(min(count, max(0, -first)), np.int16), heard])


def _nearest_key_frames(reader: Any, shown: NDArray[np.float64], wanted: Times) -> Times:
    """When the key frame is shown that is nearest to each time wanted."""
    with failing_as(Reason.UNREADABLE):
        keys = shown[reader.get_key_indices(), 0]
        nearest: Times = keys[np.abs(keys - wanted[:, None]).argmin(axis=1)]
        return nearest


def _read_frames(
    video: bytes, reader: Any, header: _Header, shown: NDArray[np.float64], wanted: Times
) -> Frames:
    """The frames nearest to the times wanted, [n, height, width, 3] RGB, upright."""
    # Decord aborts where it gets no memory: see first whether there is enough for the frames, its
    # copy of them, and those that its decoder holds.
    np.empty(header.frame_bytes * (2 * len(wanted) + 16), np.uint8)
    with failing_as(Reason.UNREADABLE):
        # Decord numbers frames that an edit list hides, but does not get them from the decoder:
        # all after them would come late by as many.
        if shown[:, 0].min() >= header.video_start_s - 1e-3:
            nearest = np.abs(shown[:, 0] - wanted[:, None]).argmin(axis=1)
            try:
                frames: Frames = reader.get_batch(nearest).asnumpy()
                return frames
            except Exception as error:
                # As it does on some sound HEVC files.
                raise_memory_error(error)
                log.debug("Decord reads no frames (%s): by PyAV then", one_line(error))
        return _read_frames_by_av(video, wanted + header.start_s)


def _read_frames_by_av(video: bytes, wanted: Times) -> Frames:
    """The same, for times on the container's own clock."""
    with open_container(io.BytesIO(video)) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        frames = (frame for frame in container.decode(stream) if frame.time is not None)
        picked = _pick_nearest(frames, wanted)
        return np.stack([upright(frame, frame.rotation) for frame in picked])


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
