"""Small real clips for tests."""

import io
from fractions import Fraction

import av
import numpy as np

RATE = 16000


def small_film(seed: int, seconds: float = 1.2) -> bytes:
    """An mp4 of 64 x 48 at 5 frames a second, with a wavering tone of its own."""
    random = np.random.default_rng(seed)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        video = output.add_stream("libx264", rate=5, width=64, height=48)
        video.pix_fmt = "yuv420p"
        sound = output.add_stream("aac", rate=RATE, layout="mono")
        for number in range(round(5 * seconds)):
            picture = random.integers(0, 255, (48, 64, 3), np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 5)
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
        times = np.arange(round(RATE * seconds)) / RATE
        pitch_hz = random.uniform(100, 400) * (1 + 0.1 * np.sin(2 * np.pi * 3 * times))
        pcm = 0.3 * np.sin(2 * np.pi * np.cumsum(pitch_hz) / RATE) + 0.01 * random.normal(
            size=len(times)
        )
        for first in range(0, len(pcm), 1024):
            piece = pcm[None, first : first + 1024].astype(np.float32)
            frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, first, Fraction(1, RATE)
            output.mux(sound.encode(frame))
        output.mux(sound.encode(None))
    return file.getvalue()
