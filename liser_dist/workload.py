"""What the speed of a job is measured on: clips like those of the web, and teachers that cost.

    PLACE/raw/          clips of 5 s, 480 x 360, 30 frames a second, as somebody would upload them
    PLACE/normalised/   the same, as ingest leaves it: 224 x 224, 8 frames a second, each a key one
    PLACE/teachers/     a speech and a face net of random weights, which cost what decoding costs

Some films stand for all: each comes again under other keys. Nobody learns anything from them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from liser_dist import drawing, synthesis
from liser_dist.corpora import built_aside
from liser_dist.encoding import Encoding, Pixels, encode_film
from liser_dist.fields import EMOTIONS, fingerprint
from liser_dist.shards import write_shards
from liser_dist.synthetic import SyntheticSpec

logger = logging.getLogger(__name__)

VERSION = 4
FILMS, LENGTH_S = 24, 5.0
_RAW = Encoding(30, 480, 360, 44_100, 128_000, {"preset": "fast", "crf": "23"})
_NORMALISED = Encoding(8, 224, 224, 16_000, 64_000, {"preset": "veryfast", "crf": "23", "g": "1"})
_HEAD_PX = 300  # of the drawn picture within the raw frame
_CORNER = ((_RAW.width - _HEAD_PX) // 2, (_RAW.height - _HEAD_PX) // 2)


def prepare_workload(place: Path, spec: SyntheticSpec) -> Path:
    """Make it when it is not there; returns its folder."""
    clips = spec.unlabelled_clips
    made_of = {"version": VERSION, "clips": clips, "films": FILMS, "shard": spec.clips_per_shard}
    folder = place.expanduser() / f"{clips}-{fingerprint(made_of)}"
    if not folder.exists():
        logger.info("making %d clips and two teachers under %s", clips, folder)
        with built_aside(folder) as half:
            films = [_make_film(number) for number in range(FILMS)]
            for name in ("raw", "normalised"):
                write_shards(_members(films, name, clips), str(half / name), spec.clips_per_shard)
            _make_speech_teacher(half / "teachers" / "speech")
            _make_face_teacher(half / "teachers" / "face")
    return folder


@dataclass(frozen=True, slots=True)
class Film:
    """Video and face boxes, by set of shards."""

    video: Mapping[str, bytes]
    faces: Mapping[str, list[list[float]]]


def _members(
    films: Sequence[Film], name: str, clips: int
) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    for number in range(clips):
        film = films[number % FILMS]
        yield f"{number:06d}", film.video[name], {"faces": film.faces[name]}


def _make_film(seed: int) -> Film:
    """One person who speaks for 5 s."""
    draw = np.random.default_rng(seed)
    person = synthesis.draw_person(f"speaker-{seed}", draw)
    times_s = np.arange(round(LENGTH_S * drawing.FRAMES_PER_S)) / drawing.FRAMES_PER_S
    voice, face = synthesis.draw_mood(person, EMOTIONS[seed % len(EMOTIONS)], 1.0, draw)
    syllables = synthesis.draw_syllables(person, voice, LENGTH_S, draw)
    opening = synthesis.loudness(syllables, voice, times_s)
    frames, boxes = drawing.draw_clip(person, face, opening, False, draw)
    sound = synthesis.record(synthesis.speak(person, voice, syllables, draw), False, draw)
    room = cv2.resize(drawing.draw_background(draw), (_RAW.width, _RAW.height))
    size = (_NORMALISED.width, _NORMALISED.height)
    small = (np.asarray(cv2.resize(frame, size), np.uint8) for frame in frames)
    to_raw, to_small = _HEAD_PX / drawing.FRAME_PX, _NORMALISED.width / drawing.FRAME_PX
    return Film(
        video={
            "raw": encode_film(_as_uploaded(frames, room, draw), _resampled(sound), _RAW),
            "normalised": encode_film(small, sound, _NORMALISED),
        },
        faces={
            "raw": _rows(times_s, boxes * to_raw + np.tile(_CORNER, 2)),
            "normalised": _rows(times_s, boxes * to_small),
        },
    )


def _as_uploaded(
    frames: NDArray[np.uint8], room: Pixels, draw: np.random.Generator
) -> Iterator[Pixels]:
    """30 frames a second, in a larger room, with a camera's grain."""
    left, top = _CORNER
    grain = draw.normal(0, 6, (_RAW.height, _RAW.width, 1))
    for number in range(round(LENGTH_S * _RAW.frames_per_s)):
        place = min(number * drawing.FRAMES_PER_S / _RAW.frames_per_s, len(frames) - 1.001)
        before, share = int(place), place % 1
        head = cv2.addWeighted(frames[before], 1 - share, frames[before + 1], share, 0)
        picture = room.astype(np.float32)
        picture[top : top + _HEAD_PX, left : left + _HEAD_PX] = cv2.resize(
            head, (_HEAD_PX, _HEAD_PX)
        )
        moved = np.roll(grain, draw.integers(0, _RAW.height, 2), axis=(0, 1))
        yield (picture + moved).clip(0, 255).astype(np.uint8)


def _resampled(sound: NDArray[np.int16]) -> NDArray[np.int16]:
    from scipy.signal import resample_poly

    up, down = _RAW.sample_rate_hz // 100, synthesis.SAMPLE_RATE_HZ // 100
    louder = resample_poly(sound.astype(np.float64), up, down)
    return np.asarray(np.clip(np.rint(louder), -32768, 32767), np.int16)


def _rows(times_s: NDArray[np.float64], boxes: NDArray[np.float64]) -> list[list[float]]:
    rows = zip(times_s, boxes, strict=True)
    return [[float(time_s), *np.round(box, 1).tolist()] for time_s, box in rows]


# ---------------------------------------------------------------- teachers


def _make_speech_teacher(folder: Path) -> None:
    import torch
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForSequenceClassification,
    )

    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=256, num_hidden_layers=8, num_attention_heads=4, intermediate_size=1024,
        conv_dim=(96,) * 7, num_conv_pos_embeddings=32, num_conv_pos_embedding_groups=16,
        id2label=dict(enumerate(EMOTIONS)), label2id={n: i for i, n in enumerate(EMOTIONS)},
    )  # fmt: skip
    Wav2Vec2ForSequenceClassification(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)


def _make_face_teacher(folder: Path) -> None:
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(1)
    config = ViTConfig(
        hidden_size=192, num_hidden_layers=14, num_attention_heads=3, intermediate_size=768,
        image_size=112, patch_size=16,
        id2label=dict(enumerate(EMOTIONS)), label2id={n: i for i, n in enumerate(EMOTIONS)},
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 112, "width": 112}).save_pretrained(folder)
