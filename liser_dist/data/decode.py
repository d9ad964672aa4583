"""Decodes a sample into a clip: one window of its sound and its face crops.

A damaged file can crash Decord, and with it the process that decodes; `clip_decoder` therefore runs
`decode_clip` in a child process.

Decoding has four steps, which read:

1. the container's header (PyAV): streams, when each starts, and how long it should be
2. the sound and the times of all frames (Decord); a file in which they end early is
   rejected as truncated
3. one window, at the same times in sound and video, that ends before either of them does
4. the window's sound and a few of its frames, which are cropped to one face
"""

from __future__ import annotations

import io
import itertools
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from liser_dist.config.stream import ClipSpec
from liser_dist.data.faces import Frames, crop_faces, parse_boxes
from liser_dist.data.media import (
    DETAIL_CHARACTERS,
    failing_as,
    find_video_stream,
    open_container,
    raise_memory_error,
    upright_image,
)
from liser_dist.data.process import import_without
from liser_dist.data.voice_activity import speech_s
from liser_dist.errors import SampleError, one_line
from liser_dist.records import Clip, Reason, Sample

# decord2 loads every NVIDIA library that is installed, which only its CUDA build needs: that costs
# 2 s and 650 MB where torch is installed.
with import_without("nvidia"):
    import decord

logger = logging.getLogger(__name__)
decord.logging.set_level(decord.logging.QUIET)

Times = NDArray[np.float64]  # [n] seconds from the start of the clip

# A file that ends this much before its header says is truncated; codec frames are shorter.
_TRUNCATED_S = 0.3


@dataclass(frozen=True, slots=True)
class DecodedWindow:
    """One window of a clip before its faces are cropped.

    Attributes:
        waveform: [samples].
        frames: [n, height, width, 3] RGB, upright, each once.
        times_s: [n], the time of each frame in the clip.
        frame_of: [faces], which of the frames each wanted time got.
    """

    waveform: NDArray[np.int16]
    frames: Frames
    times_s: Times
    frame_of: NDArray[np.intp]


def decode_clip(sample: Sample, spec: ClipSpec, start_share: float) -> Clip:
    """Decode one window of a sample and crop its faces.

    Args:
        sample: a sample with its video.
        spec: length and rates of the window, and the face detector.
        start_share: where the window lies in a longer clip, from 0 (first possible position) to 1
            (last).

    Raises:
        SampleError: the sample is unusable; says why.
        MemoryError: it takes more memory than there is.
        SpecError: `face_detector` cannot be loaded.
        ImportError: a library that the spec asks for is not installed.
    """
    boxes = parse_boxes(sample.faces)
    window = decode_window(sample.video, spec, start_share)
    faces, has_face = crop_faces(window.frames, window.times_s, boxes, spec)
    return Clip(
        **sample.provenance(),
        waveform=window.waveform,
        faces=faces[window.frame_of],
        has_face=has_face[window.frame_of],
        **sample.labels(),
    )


def decode_window(
    video: bytes,
    spec: ClipSpec,
    start_share: float,
    open_video: Callable[..., Any] = decord.VideoReader,
) -> DecodedWindow:
    """Decode the sound and the frames of one window of a media file.

    Args:
        video: the file.
        spec: length and rates of the window.
        start_share: as for `decode_clip`.
        open_video: opens the file for reading frames.

    Raises:
        SampleError: the file is unusable; says why.
        MemoryError: it takes more memory than there is.
    """
    header = _read_header(video)
    sound = _read_sound(video, spec.sample_rate_hz)
    reader, frame_spans = _index_frames(video, header, open_video)
    start_s, length_s = _place_window(header, sound, frame_spans, spec, start_share)
    waveform = _cut_sound(sound, header.sound_start_s, start_s, length_s, spec)
    frame_times: Times = start_s + (np.arange(spec.faces, dtype=np.float64) + 0.5) * (
        length_s / spec.faces
    )
    if spec.frames == "keyframes":
        frame_times = _nearest_key_frames(reader, frame_spans, frame_times)
    times_s, frame_of = np.unique(frame_times, return_inverse=True)
    frames = _read_frames(video, reader, header, frame_spans, times_s)
    return DecodedWindow(waveform, frames, times_s, frame_of)


# ---------------------------------------------------------------- the header


@dataclass(frozen=True, slots=True)
class _Header:
    """Times in seconds from the start of the clip; infinite if the header does not say."""

    frame_bytes: int  # of one frame, as RGB
    start_s: float  # of the clip, on the container's own clock
    sound_start_s: float
    video_start_s: float
    sound_end_s: float
    video_end_s: float
    end_s: float


def _read_header(video: bytes) -> _Header:
    """Read the header with PyAV, which no damaged file has crashed."""
    if not video:
        raise SampleError(Reason.EMPTY)
    with failing_as(Reason.UNREADABLE), open_container(io.BytesIO(video)) as container:
        picture = find_video_stream(container)
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
    """Return the complete sound stream: mono [samples] in -1..1, from its own start."""
    with failing_as(Reason.UNREADABLE):
        reader = decord.AudioReader(io.BytesIO(video), sample_rate=sample_rate_hz, mono=True)
        # The public `reader[:]` builds a list of every sample's index and is three times as slow.
        sound: NDArray[np.float32] = reader._array[0]
        return sound


def _index_frames(
    video: bytes, header: _Header, open_video: Callable[..., Any]
) -> tuple[Any, NDArray[np.float64]]:
    """Return Decord's reader, and [frames, 2] times at which each frame appears and disappears."""
    with failing_as(Reason.UNREADABLE):
        reader = open_video(io.BytesIO(video), num_threads=1)
        times = reader.get_frame_timestamp(np.arange(len(reader)))
        # Decord counts from the start of the stream, which may be later than that of the clip.
        frame_spans: NDArray[np.float64] = times.astype(np.float64) + header.video_start_s
        if not np.isfinite(frame_spans).all():
            raise SampleError(
                Reason.UNREADABLE,
                "the video frames have no timestamps, so they cannot be matched to the sound",
            )
        return reader, frame_spans


def _place_window(
    header: _Header,
    sound: NDArray[np.float32],
    frame_spans: NDArray[np.float64],
    spec: ClipSpec,
    start_share: float,
) -> tuple[float, float]:
    """Return start and length of the window, in seconds.

    The usable part of a clip ends with its sound or its frames, whichever is first. A window may
    begin before the sound does.
    """
    sound_end_s = header.sound_start_s + len(sound) / spec.sample_rate_hz
    video_end_s = float(frame_spans[:, 1].max())
    ends = {
        "sound": (sound_end_s, header.sound_end_s),
        "video": (video_end_s, header.video_end_s),
        "clip": (max(sound_end_s, video_end_s), header.end_s),
    }
    for name, (end_s, expected_s) in ends.items():
        if math.isfinite(expected_s) and end_s < expected_s - _TRUNCATED_S:
            detail = f"the {name} ends at {end_s:.2f} s; its header declares {expected_s:.2f} s"
            raise SampleError(Reason.TRUNCATED, detail)
    # The last codec frame is decoded beyond the end.
    end_s = min(sound_end_s, video_end_s, header.sound_end_s)
    if end_s < spec.min_duration_s or end_s <= 0:
        detail = f"the clip lasts {end_s:.2f} s, below clip.min_duration_s {spec.min_duration_s:g}"
        raise SampleError(Reason.TOO_SHORT, detail)
    length_s = min(spec.window_s, end_s)
    return start_share * (end_s - length_s), length_s


def _cut_sound(
    sound: NDArray[np.float32],
    sound_start_s: float,
    start_s: float,
    length_s: float,
    spec: ClipSpec,
) -> NDArray[np.int16]:
    """Return the window's sound, with zeros where it begins before the sound does.

    Silence and missing speech are judged on the complete clip: judged on the window, the same clip
    could be rejected in one epoch and not in another.
    """
    pcm = np.clip(np.rint(sound * 32768), -32768, 32767).astype(np.int16)
    if pcm.size == 0 or pcm.min() == pcm.max():
        raise SampleError(Reason.SILENT)
    if spec.min_speech_s > 0:
        clip_speech_s = speech_s(pcm, spec.sample_rate_hz)
        if clip_speech_s < spec.min_speech_s:
            detail = (
                f"the clip has {clip_speech_s:.2f} s of speech, below clip.min_speech_s "
                f"{spec.min_speech_s:g}"
            )
            raise SampleError(Reason.NO_SPEECH, detail)
    first = round((start_s - sound_start_s) * spec.sample_rate_hz)
    count = round(length_s * spec.sample_rate_hz)
    inside = pcm[max(0, first) : max(0, first + count)]
    return np.concatenate([np.zeros(min(count, max(0, -first)), np.int16), inside])


def _nearest_key_frames(reader: Any, frame_spans: NDArray[np.float64], frame_times: Times) -> Times:
    """Return the time of the key frame nearest to each wanted time."""
    with failing_as(Reason.UNREADABLE):
        keys = frame_spans[reader.get_key_indices(), 0]
        nearest: Times = keys[np.abs(keys - frame_times[:, None]).argmin(axis=1)]
        return nearest


def _read_frames(
    video: bytes, reader: Any, header: _Header, frame_spans: NDArray[np.float64], frame_times: Times
) -> Frames:
    """Return the frames nearest to the wanted times: [n, height, width, 3] RGB, upright."""
    # Decord aborts the process when it gets no memory. So first allocate as much as the frames, its
    # copy of them and its decoder's frames take.
    np.empty(header.frame_bytes * (2 * len(frame_times) + 16), np.uint8)
    with failing_as(Reason.UNREADABLE):
        # Decord counts frames that an edit list hides, but does not get them from the decoder, so
        # that all later frames would be shifted.
        if frame_spans[:, 0].min() >= header.video_start_s - 1e-3:
            nearest = np.abs(frame_spans[:, 0] - frame_times[:, None]).argmin(axis=1)
            try:
                frames: Frames = reader.get_batch(nearest).asnumpy()
                return frames
            except Exception as error:
                # Happens with some valid HEVC files.
                raise_memory_error(error)
                logger.debug(
                    "Decord read no frames (%s); reading with PyAV",
                    one_line(error, DETAIL_CHARACTERS),
                )
        return _read_frames_by_av(video, frame_times + header.start_s)


def _read_frames_by_av(video: bytes, frame_times: Times) -> Frames:
    """Return the frames nearest to times on the container's own clock, read with PyAV."""
    with open_container(io.BytesIO(video)) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        frames = (frame for frame in container.decode(stream) if frame.time is not None)
        picked = _pick_nearest(frames, frame_times)
        return np.stack([upright_image(frame, frame.rotation) for frame in picked])


def _pick_nearest(frames: Iterator[Any], frame_times: Times) -> list[Any]:
    """Return the frame nearest to each wanted time, in order."""
    picked: list[Any] = []
    last = next(frames, None)
    if last is None:
        raise SampleError(Reason.UNREADABLE, "no frame could be decoded")
    for frame in itertools.chain([last], frames):
        while len(picked) < len(frame_times) and frame.time >= frame_times[len(picked)]:
            time_s = frame_times[len(picked)]
            picked.append(last if time_s - last.time <= frame.time - time_s else frame)
        if len(picked) == len(frame_times):
            return picked
        last = frame
    return picked + [last] * (len(frame_times) - len(picked))
