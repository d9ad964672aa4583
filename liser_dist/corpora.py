"""The synthetic corpus: drawn people who speak with feeling -> shards and two teachers.

1. the backbones of both teachers are trained, once for all corpora at a place (`backbones.py`);
2. each shard set is cast: who is filmed, in which emotion, and what is wrong with the clip;
3. the clips are made (`synthesis.py`, `drawing.py`) and encoded, by a process for each core;
4. the teachers' heads are fitted on the labelled shards, read as any job reads them.

A corpus is built in a folder beside its place and renamed at the end: where it is, it is whole.
What an unlabelled shard holds besides pictures and sound follows from the seed and the clip's
number alone, so nothing in it can tell an emotion.
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

from liser_dist import backbones, drawing, synthesis
from liser_dist.drawing import FRAME_PX, FRAMES_PER_S
from liser_dist.encoding import Encoding, encode_film
from liser_dist.errors import SpecError
from liser_dist.fields import EMOTIONS
from liser_dist.shards import ShardVisit, find_shards, read_samples, write_shards
from liser_dist.spec import ClipSpec
from liser_dist.synthesis import SAMPLE_RATE_HZ, Floats, Person
from liser_dist.synthetic import SyntheticSpec

logger = logging.getLogger(__name__)

Member = tuple[str, bytes, dict[str, Any]]  # key, mp4, metadata

PEOPLE = {"labelled": 4, "unlabelled": 20, "validation": 6, "test": 10}

_AGREES, _DUBBED, _UNSEEN = range(3)
_UNLABELLED_FLAWS = (0.70, 0.15, 0.15)
_UNLABELLED_EMOTIONS = (0.60, 0.08, 0.08, 0.08, 0.08, 0.08)
_CLIPS_PER_TASK = 12
_HEAD_CLIPS = ClipSpec(window_s=3.0, faces=8, face_px=64, windows="even")


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that a clip follows from."""

    key: str
    seed: tuple[int, ...]
    labelled: bool
    intensities: tuple[float, float]  # how strongly it may be felt
    person: Person  # who is filmed
    emotion: str
    voice: Person  # who is heard; somebody else where the clip is dubbed
    voice_emotion: str
    seen: bool


def prepare_synthetic(spec: SyntheticSpec, pool: Executor | None = None) -> None:
    """Make the corpus and its teachers under `spec.root`, unless they are there.

    Args:
        pool: who makes the clips and trains the backbones; a process for each core when not given.

    Raises:
        SpecError: `synthetic.place` is not on disk.
    """
    if "://" in spec.place:
        raise SpecError(
            f"`synthetic.place` is {spec.place!r}: the synthetic corpus is made on a disk that "
            "every node sees, so give a folder"
        )
    if spec.root.is_dir():
        logger.info("synthetic corpus: found in %s", spec.root)
        return
    started = time.monotonic()
    logger.info("synthetic corpus: making %s", spec.root)
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
def built_aside(place: Path) -> Iterator[Path]:
    """A folder to build in, which becomes `place` when all went well."""
    place.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    try:
        yield folder
        folder.chmod(0o755)
        try:
            folder.rename(place)
        except OSError:
            if not place.is_dir():  # else another process made the same meanwhile
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _processes() -> Iterator[Executor]:
    """A process for each core; spawned, for whoever calls may have threads."""
    cores = len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(cores, mp_context=context, initializer=_enter_process)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _enter_process() -> None:
    """Keep to one core, and end with the parent, even where that is killed."""
    os.environ["OMP_NUM_THREADS"] = "1"  # read by torch, which is not yet imported
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a child process only"
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


def _make_backbone(name: str, place: Path, clips: int) -> Path:
    train = {"speech": backbones.train_speech_backbone, "face": backbones.train_face_backbone}
    if not place.is_dir():
        with built_aside(place) as folder:
            train[name](folder, clips)
    return place


def _fit_teacher(backbone: Path, labelled: Path, folder: Path) -> None:
    """A head on the labelled shards, by the path that any job's clips go."""
    from liser_dist.decode import decode_clip
    from liser_dist.fitting import fit_teacher

    clips = [
        decode_clip(sample, _HEAD_CLIPS, start_share=0.5)
        for shard in find_shards(str(labelled), "synthetic")
        for sample in read_samples(ShardVisit(0, shard.place))
    ]
    fit_teacher(backbone, clips, EMOTIONS, folder, _HEAD_CLIPS.sample_rate_hz)


# ---------------------------------------------------------------- shards


def _write_set(pool: Executor, name: str, spec: SyntheticSpec, folder: Path) -> None:
    started = time.monotonic()
    recipes = cast_set(name, spec)
    tasks = [recipes[at : at + _CLIPS_PER_TASK] for at in range(0, len(recipes), _CLIPS_PER_TASK)]
    members = (member for made in pool.map(make_clips, tasks) for member in made)
    (folder / name).mkdir()
    write_shards(members, str(folder / name), spec.clips_per_shard)
    elapsed_s = time.monotonic() - started
    logger.info("synthetic corpus: %d %s clips in %.0f s", len(recipes), name, elapsed_s)


def cast_set(name: str, spec: SyntheticSpec) -> list[Recipe]:
    """The clips of one of the four sets, in the order of its shards."""
    seed = (spec.seed or 0, list(PEOPLE).index(name))
    rng = np.random.default_rng([*seed, 0])
    cast = [
        synthesis.draw_person(f"{name}-{number:02d}", np.random.default_rng([*seed, 1, number]))
        for number in range(PEOPLE[name])
    ]
    count = _clips_in(name, spec)
    labelled = name != "unlabelled"
    emotion_shares = _even(len(EMOTIONS)) if labelled else np.array(_UNLABELLED_EMOTIONS)
    flaw_shares = np.ones(1) if labelled else np.array(_UNLABELLED_FLAWS)
    people = _deal(count, _even(len(cast)), rng)
    emotions = _deal(count, emotion_shares, rng)
    flaws = _deal(count, flaw_shares, rng)
    # Whose voice is put over a dubbed clip, and what that one feels.
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
            intensities=synthesis.ACTED if name == "labelled" else synthesis.LIVED,
            person=cast[people[number]],
            emotion=EMOTIONS[emotions[number]],
            voice=cast[voices[number]],
            voice_emotion=EMOTIONS[voice_emotions[number]],
            seen=bool(flaws[number] != _UNSEEN),
        )
        for number in range(count)
    ]


def _clips_in(name: str, spec: SyntheticSpec) -> int:
    if name == "labelled":
        return spec.labelled_per_emotion * len(EMOTIONS)
    return int(getattr(spec, f"{name}_clips"))


def _even(count: int) -> Floats:
    return np.full(count, 1 / count)


def _deal(count: int, shares: Floats, rng: np.random.Generator) -> NDArray[np.intp]:
    """[count] numbers that occur in these shares, shuffled."""
    middles = (np.arange(count) + 0.5) / count
    return rng.permutation(np.searchsorted(np.cumsum(shares)[:-1], middles))


def make_clips(recipes: Sequence[Recipe]) -> list[Member]:
    """Shard members, one a recipe."""
    return [make_clip(recipe) for recipe in recipes]


def make_clip(recipe: Recipe) -> Member:
    """Synthesise, film and encode one clip."""
    # Each part draws from a generator of its own, so that what can be read off the metadata
    # (the length, where the head is) does not depend on how many draws a voice took.
    plan, mood, voicing, filming = np.random.default_rng(recipe.seed).spawn(4)
    duration_s = round(plan.uniform(3.2, 4.0) * FRAMES_PER_S) / FRAMES_PER_S
    intensity = float(plan.uniform(*recipe.intensities))
    times_s = np.arange(round(duration_s * FRAMES_PER_S)) / FRAMES_PER_S

    voice, face = synthesis.draw_mood(recipe.person, recipe.emotion, intensity, mood)
    phrase = synthesis.draw_syllables(recipe.person, voice, duration_s, voicing)
    opening = synthesis.loudness(phrase, voice, times_s)
    if recipe.voice is not recipe.person:
        voice, _ = synthesis.draw_mood(recipe.voice, recipe.voice_emotion, intensity, mood)
        phrase = synthesis.draw_syllables(recipe.voice, voice, duration_s, voicing)
    shifted = not recipe.labelled
    sound = synthesis.speak(recipe.voice, voice, phrase, voicing)
    waveform = synthesis.record(sound, shifted, voicing)
    person = recipe.person if recipe.seen else None
    frames, boxes = drawing.draw_clip(person, face, opening, shifted, filming)

    facts: dict[str, Any] = {
        "faces": _list_boxes(times_s, boxes),
        "duration_s": duration_s,
        "source": "synthetic",
    }
    if recipe.labelled:
        facts |= {"emotion": recipe.emotion, "speaker": recipe.person.name, "intensity": intensity}
    return recipe.key, encode_clip(frames, waveform), facts


def _list_boxes(times_s: Floats, boxes: Floats) -> list[list[float]]:
    """[t_s, x0, y0, x1, y1] of every other frame."""
    rows = zip(times_s[: len(boxes) : 2], boxes[::2], strict=True)
    return [[float(time_s), *np.round(box, 1).tolist()] for time_s, box in rows]


def encode_clip(frames: drawing.Pixels, waveform: NDArray[np.int16]) -> bytes:
    """An mp4 file (H.264, AAC) of frames [n, 128, 128, 3] at 8 a second and sound at 16 kHz."""
    # What it costs to decode is decided here: a key frame every half second.
    options = {"preset": "ultrafast", "crf": "32", "g": "4"}
    look = Encoding(FRAMES_PER_S, FRAME_PX, FRAME_PX, SAMPLE_RATE_HZ, 48_000, options)
    return encode_film(frames, waveform, look)
