"""Generates the synthetic corpus: shards of cartoon people who speak, and two teachers.

1. The backbones of both teachers are trained, once for all corpora in a folder (`backbones.py`).
2. The recipes of each shard set are drawn: who appears, in which emotion, and
   which unlabelled clips are flawed (no face, a voice from another clip).
3. The clips are generated (`voices.py`, `pictures.py`) and encoded, by one process per core.
4. The heads of the teachers are fitted on the labelled shards, read as in any job.

A corpus is built in a temporary folder beside its final one and renamed at the end, so the final
folder is always complete. Apart from video and audio, an unlabelled shard holds only values that
follow from the seed and the clip's number, so nothing in it reveals an emotion.
"""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from liser_dist.config.base import EMOTIONS
from liser_dist.config.stream import ClipSpec
from liser_dist.config.synthetic import SyntheticSpec
from liser_dist.data.media import Encoding, Pixels, encode_film
from liser_dist.data.shard_list import find_shards
from liser_dist.data.shards import ShardVisit, read_samples, write_shards
from liser_dist.errors import SpecError
from liser_dist.records import CENTRE_SHARE
from liser_dist.synthetic.backbones import train_face_backbone, train_speech_backbone
from liser_dist.synthetic.pictures import FRAME_PX, FRAMES_PER_S, draw_clip
from liser_dist.synthetic.voices import (
    ACTED_INTENSITY,
    SAMPLE_RATE_HZ,
    SPONTANEOUS_INTENSITY,
    FloatArray,
    Person,
    draw_mood,
    draw_person,
    draw_syllables,
    loudness,
    record,
    speak,
)

logger = logging.getLogger(__name__)

ShardMember = tuple[str, bytes, dict[str, Any]]  # key, mp4, metadata

PEOPLE = {"labelled": 4, "unlabelled": 20, "validation": 6, "test": 10}

_NO_FLAW, _DUBBED, _UNSEEN = range(3)
_UNLABELLED_FLAWS = (0.70, 0.15, 0.15)
_UNLABELLED_EMOTIONS = (0.60, 0.08, 0.08, 0.08, 0.08, 0.08)
_CLIPS_PER_TASK = 12
_HEAD_CLIPS = ClipSpec(window_s=3.0, faces=8, face_px=64, windows="even")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that determines a clip."""

    key: str
    seed: tuple[int, ...]
    labelled: bool
    intensities: tuple[float, float]  # bounds of the emotion's intensity
    person: Person  # the person in the picture
    emotion: str
    voice: Person  # the speaker; another person if the clip is dubbed
    voice_emotion: str
    seen: bool  # False: the picture shows an empty room


def prepare_synthetic(spec: SyntheticSpec, pool: Executor | None = None) -> None:
    """Generate the corpus and its teachers in `spec.root`, unless that folder exists.

    Args:
        spec: what is generated, and where.
        pool: makes the clips and trains the backbones; one process per core when not given.

    Raises:
        SpecError: `synthetic.place` is not on disk.
    """
    if "://" in spec.place:
        raise SpecError(
            f"`synthetic.place` {spec.place!r} is not a folder: the synthetic corpus is generated "
            "on disk, so give a folder that every node can read"
        )
    if spec.root.is_dir():
        logger.info("synthetic corpus: reusing %s", spec.root)
        return
    started = time.monotonic()
    logger.info("synthetic corpus: generating %s", spec.root)
    with (
        built_aside(spec.root) as folder,
        nullcontext(pool) if pool else _processes() as workers,
    ):
        trained = _start_backbones(workers, spec)
        for name in PEOPLE:
            _write_set(workers, name, spec, folder)
        for name, future in trained.items():
            _fit_teacher(future.result(), folder / "labelled", folder / "teachers" / name)
    logger.info("synthetic corpus: ready after %.0f s", time.monotonic() - started)


@contextmanager
def built_aside(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`, which is renamed to it if no error was raised."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process has made the same meanwhile
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _processes() -> Iterator[Executor]:
    """Yield a pool with one process per core, spawned since the caller may have threads."""
    cores = len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(cores, mp_context=context, initializer=_enter_process)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _enter_process() -> None:
    """Limit this process to one core, and end it with its parent, even if that is killed."""
    os.environ["OMP_NUM_THREADS"] = "1"  # read by torch, which has not been imported yet
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None, "must run in a child process"
    sentinel = parent.sentinel

    def watch() -> None:
        connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


# ---------------------------------------------------------------- teachers


def _start_backbones(pool: Executor, spec: SyntheticSpec) -> dict[str, Future[Path]]:
    return {
        name: pool.submit(_make_backbone, name, spec.backbones / name, spec.backbone_clips)
        for name in ("speech", "face")
    }


def _make_backbone(name: str, folder: Path, clips: int) -> Path:
    train = {"speech": train_speech_backbone, "face": train_face_backbone}
    if not folder.is_dir():
        with built_aside(folder) as temporary:
            train[name](temporary, clips)
    return folder


def _fit_teacher(backbone: Path, labelled: Path, folder: Path) -> None:
    """Fit a head on the labelled shards, which are read and decoded as in any job."""
    from liser_dist.data.decode import decode_clip
    from liser_dist.synthetic.teachers import fit_teacher

    clips = [
        decode_clip(sample, _HEAD_CLIPS, start_share=CENTRE_SHARE)
        for shard in find_shards(str(labelled), "synthetic")
        for sample in read_samples(ShardVisit(0, shard.place))
    ]
    fit_teacher(backbone, clips, EMOTIONS, folder, _HEAD_CLIPS.sample_rate_hz)


# ---------------------------------------------------------------- shards


def _write_set(pool: Executor, name: str, spec: SyntheticSpec, folder: Path) -> None:
    started = time.monotonic()
    recipes = draw_recipes(name, spec)
    tasks = [recipes[at : at + _CLIPS_PER_TASK] for at in range(0, len(recipes), _CLIPS_PER_TASK)]
    members = (member for batch in pool.map(render_clips, tasks) for member in batch)
    (folder / name).mkdir()
    write_shards(members, str(folder / name), spec.clips_per_shard)
    elapsed_s = time.monotonic() - started
    logger.info("synthetic corpus: generated %d %s clips in %.0f s", len(recipes), name, elapsed_s)


def draw_recipes(name: str, spec: SyntheticSpec) -> list[Recipe]:
    """Draw the recipes of one of the four sets, in the order of its shards."""
    seed = (spec.seed or 0, list(PEOPLE).index(name))
    rng = np.random.default_rng([*seed, 0])
    cast = [
        draw_person(f"{name}-{number:02d}", np.random.default_rng([*seed, 1, number]))
        for number in range(PEOPLE[name])
    ]
    count = _count_clips(name, spec)
    labelled = name != "unlabelled"
    emotion_shares = _even(len(EMOTIONS)) if labelled else np.array(_UNLABELLED_EMOTIONS)
    flaw_shares = np.ones(1) if labelled else np.array(_UNLABELLED_FLAWS)
    people = _deal(count, _even(len(cast)), rng)
    emotions = _deal(count, emotion_shares, rng)
    flaws = _deal(count, flaw_shares, rng)
    # The speaker of a dubbed clip, and that speaker's emotion.
    voices = (people + rng.integers(1, len(cast), count)) % len(cast)
    voice_emotions = rng.choice(len(EMOTIONS), count, p=emotion_shares)
    dubbed = flaws == _DUBBED
    voices = np.where(dubbed, voices, people)
    voice_emotions = np.where(dubbed, voice_emotions, emotions)
    return [
        Recipe(
            key=hashlib.sha256(repr((*seed, number)).encode()).hexdigest()[:16],
            seed=(*seed, 2, number),
            labelled=labelled,
            intensities=ACTED_INTENSITY if name == "labelled" else SPONTANEOUS_INTENSITY,
            person=cast[people[number]],
            emotion=EMOTIONS[emotions[number]],
            voice=cast[voices[number]],
            voice_emotion=EMOTIONS[voice_emotions[number]],
            seen=bool(flaws[number] != _UNSEEN),
        )
        for number in range(count)
    ]


def _count_clips(name: str, spec: SyntheticSpec) -> int:
    counts = {
        "labelled": spec.labelled_per_emotion * len(EMOTIONS),
        "unlabelled": spec.unlabelled_clips,
        "validation": spec.validation_clips,
        "test": spec.test_clips,
    }
    return counts[name]


def _even(count: int) -> FloatArray:
    return np.full(count, 1 / count)


def _deal(count: int, shares: FloatArray, rng: np.random.Generator) -> NDArray[np.intp]:
    """Return indices [count] that occur in the given shares, shuffled."""
    middles = (np.arange(count) + 0.5) / count
    return rng.permutation(np.searchsorted(np.cumsum(shares)[:-1], middles))


def render_clips(recipes: Sequence[Recipe]) -> list[ShardMember]:
    """Return the shard members of the recipes."""
    return [render_clip(recipe) for recipe in recipes]


def render_clip(recipe: Recipe) -> ShardMember:
    """Synthesise the voice, draw the frames and encode one clip."""
    # Each part has its own generator, so that the metadata (duration, position of the head) does
    # not depend on the number of draws that the voice took.
    plan, mood, voicing, filming = np.random.default_rng(recipe.seed).spawn(4)
    duration_s = round(plan.uniform(3.2, 4.0) * FRAMES_PER_S) / FRAMES_PER_S
    intensity = float(plan.uniform(*recipe.intensities))
    times_s = np.arange(round(duration_s * FRAMES_PER_S)) / FRAMES_PER_S

    voice, face = draw_mood(recipe.person, recipe.emotion, intensity, mood)
    phrase = draw_syllables(recipe.person, voice, duration_s, voicing)
    opening = loudness(phrase, voice, times_s)
    if recipe.voice is not recipe.person:
        voice, _ = draw_mood(recipe.voice, recipe.voice_emotion, intensity, mood)
        phrase = draw_syllables(recipe.voice, voice, duration_s, voicing)
    shifted = not recipe.labelled
    sound = speak(recipe.voice, voice, phrase, voicing)
    waveform = record(sound, shifted, voicing)
    person = recipe.person if recipe.seen else None
    frames, boxes = draw_clip(person, face, opening, shifted, filming)

    metadata: dict[str, Any] = {
        "faces": _list_boxes(times_s, boxes),
        "duration_s": duration_s,
        "source": "synthetic",
    }
    if recipe.labelled:
        metadata |= {
            "emotion": recipe.emotion,
            "speaker": recipe.person.name,
            "intensity": intensity,
        }
    return recipe.key, encode_clip(frames, waveform), metadata


def _list_boxes(times_s: FloatArray, boxes: FloatArray) -> list[list[float]]:
    """Return [t_s, x0, y0, x1, y1] of every second frame."""
    rows = zip(times_s[: len(boxes) : 2], boxes[::2], strict=True)
    return [[float(time_s), *np.round(box, 1).tolist()] for time_s, box in rows]


def encode_clip(frames: Pixels, waveform: NDArray[np.int16]) -> bytes:
    """Encode frames [n, 128, 128, 3] at 8 fps and 16 kHz audio as an mp4 file (H.264, AAC)."""
    # The encoding determines the cost of decoding: a key frame every half second.
    options = {"preset": "ultrafast", "crf": "32", "g": "4"}
    encoding = Encoding(FRAMES_PER_S, FRAME_PX, FRAME_PX, SAMPLE_RATE_HZ, 48_000, options)
    return encode_film(frames, waveform, encoding)
