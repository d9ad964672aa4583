"""Generates the workload of the speed benchmark: clips like those on the web, and costly teachers.

    FOLDER/raw/          clips of 5 s, 480 x 360, 30 frames per second, as a user would upload them
    FOLDER/normalised/   the same clips as ingest writes them: 224 x 224, 8 fps, all key frames
    FOLDER/teachers/     a speech and a face model with random weights that cost as much as decoding

A few videos are repeated under the names of all clips. The workload measures speed; nothing can be
learned from it.
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

from liser_dist.config.base import EMOTIONS, fingerprint
from liser_dist.config.synthetic import SyntheticSpec
from liser_dist.data.media import Encoding, Pixels, encode_film
from liser_dist.data.shards import write_shards
from liser_dist.synthetic.corpus import built_aside
from liser_dist.synthetic.pictures import FRAME_PX, FRAMES_PER_S, draw_background, draw_clip
from liser_dist.synthetic.voices import (
    SAMPLE_RATE_HZ,
    draw_mood,
    draw_person,
    draw_syllables,
    loudness,
    record,
    speak,
)

logger = logging.getLogger(__name__)

WORKLOAD_VERSION = 4
FILMS, DURATION_S = 24, 5.0
_RAW = Encoding(30, 480, 360, 44_100, 128_000, {"preset": "fast", "crf": "23"})
_NORMALISED = Encoding(8, 224, 224, 16_000, 64_000, {"preset": "veryfast", "crf": "23", "g": "1"})
_HEAD_PX = 300  # of the drawn picture within the raw frame
_CORNER = ((_RAW.width - _HEAD_PX) // 2, (_RAW.height - _HEAD_PX) // 2)


def prepare_workload(root: Path, spec: SyntheticSpec) -> Path:
    """Generate the workload below `root` unless it exists, and return its folder."""
    clips = spec.unlabelled_clips
    made_of = {
        "version": WORKLOAD_VERSION,
        "clips": clips,
        "films": FILMS,
        "shard": spec.clips_per_shard,
    }
    folder = root.expanduser() / f"{clips}-{fingerprint(made_of)}"
    if not folder.exists():
        logger.info("speed benchmark: generating %d clips and two teachers in %s", clips, folder)
        with built_aside(folder) as temporary:
            films = [_make_film(number) for number in range(FILMS)]
            for name in ("raw", "normalised"):
                write_shards(
                    _members(films, name, clips), str(temporary / name), spec.clips_per_shard
                )
            _make_speech_teacher(temporary / "teachers" / "speech")
            _make_face_teacher(temporary / "teachers" / "face")
    return folder


@dataclass(frozen=True, slots=True)
class _EncodedFilm:
    """Video and face boxes, raw and normalised."""

    video: Mapping[str, bytes]
    faces: Mapping[str, list[list[float]]]


def _members(
    films: Sequence[_EncodedFilm], name: str, clips: int
) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    for number in range(clips):
        film = films[number % FILMS]
        yield f"{number:06d}", film.video[name], {"faces": film.faces[name]}


def _make_film(seed: int) -> _EncodedFilm:
    """Encode a film of one person who speaks for 5 s."""
    rng = np.random.default_rng(seed)
    person = draw_person(f"speaker-{seed}", rng)
    times_s = np.arange(round(DURATION_S * FRAMES_PER_S)) / FRAMES_PER_S
    voice, face = draw_mood(person, EMOTIONS[seed % len(EMOTIONS)], 1.0, rng)
    syllables = draw_syllables(person, voice, DURATION_S, rng)
    opening = loudness(syllables, voice, times_s)
    frames, boxes = draw_clip(person, face, opening, False, rng)
    sound = record(speak(person, voice, syllables, rng), False, rng)
    room = cv2.resize(draw_background(rng), (_RAW.width, _RAW.height))
    size = (_NORMALISED.width, _NORMALISED.height)
    small = (np.asarray(cv2.resize(frame, size), np.uint8) for frame in frames)
    to_raw, to_small = _HEAD_PX / FRAME_PX, _NORMALISED.width / FRAME_PX
    return _EncodedFilm(
        video={
            "raw": encode_film(_upscale(frames, room, rng), _resample(sound), _RAW),
            "normalised": encode_film(small, sound, _NORMALISED),
        },
        faces={
            "raw": _box_rows(times_s, boxes * to_raw + np.tile(_CORNER, 2)),
            "normalised": _box_rows(times_s, boxes * to_small),
        },
    )


def _upscale(frames: NDArray[np.uint8], room: Pixels, rng: np.random.Generator) -> Iterator[Pixels]:
    """Yield frames at 30 fps, with the drawn picture in a larger room, and with camera grain."""
    left, top = _CORNER
    grain = rng.normal(0, 6, (_RAW.height, _RAW.width, 1))
    for number in range(round(DURATION_S * _RAW.frames_per_s)):
        position = min(number * FRAMES_PER_S / _RAW.frames_per_s, len(frames) - 1.001)
        before, share = int(position), position % 1
        head = cv2.addWeighted(frames[before], 1 - share, frames[before + 1], share, 0)
        picture = room.astype(np.float32)
        picture[top : top + _HEAD_PX, left : left + _HEAD_PX] = cv2.resize(
            head, (_HEAD_PX, _HEAD_PX)
        )
        moved = np.roll(grain, rng.integers(0, _RAW.height, 2), axis=(0, 1))
        yield (picture + moved).clip(0, 255).astype(np.uint8)


def _resample(sound: NDArray[np.int16]) -> NDArray[np.int16]:
    from scipy.signal import resample_poly

    up, down = _RAW.sample_rate_hz // 100, SAMPLE_RATE_HZ // 100
    resampled = resample_poly(sound.astype(np.float64), up, down)
    return np.asarray(np.clip(np.rint(resampled), -32768, 32767), np.int16)


def _box_rows(times_s: NDArray[np.float64], boxes: NDArray[np.float64]) -> list[list[float]]:
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
