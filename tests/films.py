"""Makes small real clips and films for tests."""

import functools
import io
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import cv2
import numpy as np

from liser_dist.config.base import EMOTIONS
from liser_dist.synthetic.pictures import draw_clip
from liser_dist.synthetic.voices import (
    draw_mood,
    draw_person,
    draw_syllables,
    loudness,
    record,
    speak,
)

RATE = 16000
FACES_PER_S = 24


def small_film(seed: int, seconds: float = 1.2) -> bytes:
    """Return an mp4 of 64 x 48 at 5 frames a second; picture and wavering tone follow the seed."""
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


@functools.cache
def _speech() -> tuple[np.ndarray, np.ndarray]:
    """Return 5 s of a voice that silero-vad takes for speech, and how far it opens the mouth.

    [samples] at 16 kHz in -1..1, and [frames].
    """
    draw = np.random.default_rng(2)
    person = draw_person("voice", draw)
    voice, _ = draw_mood(person, EMOTIONS[2], 1.0, draw)
    syllables = draw_syllables(person, voice, 5.0, draw)
    sound = record(speak(person, voice, syllables, draw), False, draw)
    times_s = np.arange(5 * FACES_PER_S) / FACES_PER_S
    return sound / 32768, loudness(syllables, voice, times_s)


@functools.cache
def _face() -> np.ndarray:
    """Return [frames, 200, 200, 3] of a drawn, speaking face that the Haar detector finds."""
    draw = np.random.default_rng(1)
    person = draw_person("face", draw)
    _, face = draw_mood(person, EMOTIONS[1], 1.0, draw)
    frames, _ = draw_clip(person, face, _speech()[1], False, draw)
    return np.stack([cv2.resize(frame, (200, 200)) for frame in frames])


@dataclass(frozen=True)
class Scene:
    """A shot: its length, the faces in the picture, and whether somebody speaks."""

    seconds: float
    faces: int = 1
    face_px: int = 200
    speech: bool = True
    shade: int = 90  # of the wall, so that shots differ


def talking_film(
    scenes: Sequence[Scene],
    container: str = "mp4",
    codecs: tuple[str, str] = ("libx264", "aac"),
    *,
    from_s: float = 0.0,
    events_s: Sequence[float] = (),
    fps: int = 24,
) -> bytes:
    """Return a film of 480 x 240 with one white frame and a click at each event.

    Args:
        scenes: its shots, in order.
        container: format of the file.
        codecs: of picture and sound.
        from_s: its first time stamp.
        events_s: when the events are.
        fps: frame rate.
    """
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        video = output.add_stream(codecs[0], rate=fps, width=480, height=240)
        video.pix_fmt = "yuv420p"
        sound = output.add_stream(codecs[1], rate=48000, layout="mono")
        packets = []
        for number, picture in enumerate(_pictures(scenes, events_s, fps)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number + round(from_s * fps), Fraction(1, fps)
            packets += video.encode(frame)
        pcm = np.repeat(_sound(scenes, events_s), 3)
        for first in range(0, len(pcm), 960):
            frame = av.AudioFrame.from_ndarray(
                (pcm[None, first : first + 960] * 32767).astype(np.int16),
                format="s16",
                layout="mono",
            )
            frame.sample_rate, frame.time_base = 48000, Fraction(1, 48000)
            frame.pts = first + round(from_s * 48000)
            packets += sound.encode(frame)
        packets += video.encode(None) + sound.encode(None)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            output.mux(packet)
    return file.getvalue()


def _pictures(scenes: Sequence[Scene], events_s: Sequence[float], fps: int) -> Iterator[np.ndarray]:
    number = 0
    for scene in scenes:
        for _ in range(round(scene.seconds * fps)):
            time_s = number / fps
            picture = np.full((240, 480, 3), scene.shade, np.uint8)
            face = _face()[int(time_s * FACES_PER_S) % len(_face())]
            for place in range(scene.faces):
                px = scene.face_px
                picture[20 : 20 + px, 20 + 230 * place : 20 + 230 * place + px] = cv2.resize(
                    face, (px, px)
                )
            if any(abs(time_s - event_s) < 0.5 / fps for event_s in events_s):
                picture[:] = 255
            yield picture
            number += 1


def _sound(scenes: Sequence[Scene], events_s: Sequence[float]) -> np.ndarray:
    random = np.random.default_rng(0)
    parts = []
    for scene in scenes:
        length = round(scene.seconds * RATE)
        parts.append(
            np.resize(_speech()[0], length) if scene.speech else random.normal(size=length) / 1e4
        )
    pcm = np.concatenate(parts) * 0.6
    for event_s in events_s:
        pcm[round(event_s * RATE) :][:16] = 0.95
    return pcm


def sound_file(seconds: float) -> bytes:
    """Return a wav of a voice that speaks."""
    file = io.BytesIO()
    with wave.open(file, "wb") as output:
        output.setnchannels(1)
        output.setsampwidth(2)
        output.setframerate(RATE)
        sound = np.resize(_speech()[0], round(seconds * RATE)) * 0.6 * 32767
        output.writeframes(sound.astype(np.int16).tobytes())
    return file.getvalue()
