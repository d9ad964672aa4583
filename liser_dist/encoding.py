"""Frames and sound -> a film, with PyAV."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]  # [height, width, 3] RGB


@dataclass(frozen=True, slots=True)
class Encoding:
    """What a film looks like: H.264 and AAC in mp4."""

    frames_per_s: int
    width: int
    height: int
    sample_rate_hz: int
    sound_bits_s: int
    options: Mapping[str, str] = field(default_factory=dict)  # of x264


def encode_film(frames: Iterable[Pixels], waveform: NDArray[np.int16], encoding: Encoding) -> bytes:
    """An mp4 file of frames and sound [samples], mono. The same input gives the same bytes."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        picture: Any = container.add_stream("libx264", rate=encoding.frames_per_s)
        picture.width, picture.height = encoding.width, encoding.height
        picture.pix_fmt = "yuv420p"
        # One thread, as the order of two would show in the bytes.
        picture.options = {**encoding.options, "threads": "1"}
        rate = encoding.sample_rate_hz
        sound: Any = container.add_stream("aac", rate=rate, layout="mono")
        sound.bit_rate = encoding.sound_bits_s
        for frame in frames:
            container.mux(picture.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        samples = av.AudioFrame.from_ndarray(waveform[None], format="s16", layout="mono")
        samples.sample_rate, samples.pts = rate, 0
        samples.time_base = Fraction(1, rate)
        container.mux(sound.encode(samples))
        for stream in (picture, sound):
            container.mux(stream.encode(None))
    return file.getvalue()
