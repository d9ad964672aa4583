"""Opens and writes media files with PyAV, which no damaged file has crashed so far.

Also turns the exceptions of media libraries into a `SampleError` with a short, printable text.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import IO, Any

import av
import numpy as np
from numpy.typing import NDArray

from liser_dist.errors import LiserError, SampleError, one_line
from liser_dist.records import Reason

Pixels = NDArray[np.uint8]  # [height, width, 3]

DETAIL_CHARACTERS = 200  # of a rejection
_OUT_OF_MEMORY = ("bad_alloc", "Cannot allocate memory", "Insufficient memory")


# ---------------------------------------------------------------- reading


def open_container(stream: IO[bytes]) -> Any:
    """Open a media file from a seekable stream; return PyAV's container."""
    # Titles that are not UTF-8 are no reason to refuse a file.
    return av.open(stream, metadata_errors="replace")


def find_video_stream(container: Any) -> Any:
    """Return the video stream that Decord would decode; None for the cover of a sound file."""
    stream = container.streams.best("video")
    cover = av.stream.Disposition.attached_pic
    return None if stream is None or stream.disposition & cover else stream


def upright_image(frame: Any, degrees: int) -> Pixels:
    """Return a frame turned by its display rotation."""
    picture = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(picture, round(degrees / 90)))


# ---------------------------------------------------------------- errors


@contextmanager
def failing_as(reason: Reason) -> Iterator[None]:
    """Turn exceptions of media libraries, which are of many types, into a SampleError.

    Raises:
        SampleError: with this reason.
        MemoryError: native code could not allocate memory.
    """
    try:
        yield
    except (LiserError, MemoryError, ImportError):
        raise
    except Exception as error:
        raise_memory_error(error)
        # Without its cause: some exceptions carry the complete file.
        raise SampleError(reason, one_line(error, DETAIL_CHARACTERS)) from None


def raise_memory_error(error: Exception) -> None:
    """Raise MemoryError if native code's error says that it got no memory."""
    if any(words in str(error) for words in _OUT_OF_MEMORY):
        raise MemoryError(one_line(error, DETAIL_CHARACTERS)) from None


# ---------------------------------------------------------------- writing


@dataclass(frozen=True, slots=True)
class Encoding:
    """How `encode_film` encodes: H.264 with AAC, or with lossless FLAC, in mp4.

    Attributes:
        frames_per_s: nominal frame rate.
        width: of the frames, in pixels.
        height: of the frames, in pixels.
        sample_rate_hz: of the sound.
        sound_bits_s: bit rate of AAC; None for FLAC.
        options: of x264.
    """

    frames_per_s: int
    width: int
    height: int
    sample_rate_hz: int
    sound_bits_s: int | None
    options: Mapping[str, str] = field(default_factory=dict)


def encode_film(
    frames: Iterable[Pixels],
    waveform: NDArray[np.int16],
    encoding: Encoding,
    times_s: Iterable[float] | None = None,
) -> bytes:
    """Encode frames and mono sound as an mp4 file. The same input gives the same bytes.

    Args:
        frames: [height, width, 3] RGB each.
        waveform: [samples].
        encoding: codecs, rates and size.
        times_s: time of each frame, to the millisecond; None spaces frames evenly.

    Returns:
        The file's content.
    """
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        picture: Any = container.add_stream("libx264", rate=encoding.frames_per_s)
        picture.width, picture.height = encoding.width, encoding.height
        picture.pix_fmt = "yuv420p"
        # One thread: with more, the bytes would depend on their timing.
        picture.options = {**encoding.options, "threads": "1"}
        rate, flac = encoding.sample_rate_hz, encoding.sound_bits_s is None
        sound: Any = container.add_stream("flac" if flac else "aac", rate=rate, layout="mono")
        if not flac:
            sound.bit_rate = encoding.sound_bits_s
        if times_s is not None:
            picture.codec_context.time_base = Fraction(1, 1000)
        times = itertools.repeat(None) if times_s is None else times_s
        for frame, time_s in zip(frames, times, strict=False):
            encoded = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if time_s is not None:
                encoded.pts, encoded.time_base = round(1000 * time_s), Fraction(1, 1000)
            container.mux(picture.encode(encoded))
        samples = av.AudioFrame.from_ndarray(waveform[None], format="s16", layout="mono")
        samples.sample_rate, samples.pts = rate, 0
        samples.time_base = Fraction(1, rate)
        container.mux(sound.encode(samples))
        for stream in (picture, sound):
            container.mux(stream.encode(None))
    return file.getvalue()
