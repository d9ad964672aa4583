"""Frames and sound -> a film, with PyAV."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]  # [height, width, 3] RGB


@dataclass(frozen=True, slots=True)
class Encoding:
    """What a film looks like: H.264 with AAC, or with FLAC, which loses nothing, in mp4."""

    frames_per_s: int
    width: int
    height: int
    sample_rate_hz: int
    sound_bits_s: int | None  # of AAC; FLAC where it is None
    options: Mapping[str, str] = field(default_factory=dict)  # of x264


def encode_film(
    frames: Iterable[Pixels],
    waveform: NDArray[np.int16],
    encoding: Encoding,
    times_s: Iterable[float] | None = None,
) -> bytes:
    """An mp4 file of frames and sound [samples], mono. The same input gives the same bytes.

    `times_s`: when each frame is shown, to the millisecond; at an even rate, without.
    """
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        picture: Any = container.add_stream("libx264", rate=encoding.frames_per_s)
        picture.width, picture.height = encoding.width, encoding.height
        picture.pix_fmt = "yuv420p"
        # One thread, as the order of two would show in the bytes.
        picture.options = {**encoding.options, "threads": "1"}
        rate, flac = encoding.sample_rate_hz, encoding.sound_bits_s is None
        sound: Any = container.add_stream("flac" if flac else "aac", rate=rate, layout="mono")
        if not flac:
            sound.bit_rate = encoding.sound_bits_s
        if times_s is not None:
            picture.codec_context.time_base = Fraction(1, 1000)
        times = itertools.repeat(None) if times_s is None else times_s
        for frame, time_s in zip(frames, times, strict=False):
            shown = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if time_s is not None:
                shown.pts, shown.time_base = round(1000 * time_s), Fraction(1, 1000)
            container.mux(picture.encode(shown))
        samples = av.AudioFrame.from_ndarray(waveform[None], format="s16", layout="mono")
        samples.sample_rate, samples.pts = rate, 0
        samples.time_base = Fraction(1, rate)
        container.mux(sound.encode(samples))
        for stream in (picture, sound):
            container.mux(stream.encode(None))
    return file.getvalue()
