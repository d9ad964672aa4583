"""The synthetic corpus is reproducible, its speakers are disjoint, and it leaks no emotion."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from liser_dist.config.base import EMOTIONS
from liser_dist.config.stream import ClipSpec
from liser_dist.config.synthetic import SyntheticSpec
from liser_dist.data.decode import decode_clip
from liser_dist.data.shards import ShardVisit, read_samples
from liser_dist.errors import SpecError
from liser_dist.synthetic.corpus import PEOPLE, draw_recipes, prepare_synthetic, render_clip
from liser_dist.synthetic.pictures import draw_clip
from liser_dist.synthetic.voices import (
    FACE_DIMS,
    SAMPLE_RATE_HZ,
    VOICE_DIMS,
    draw_person,
    draw_syllables,
    speak,
)

CLIP = ClipSpec(window_s=3.0, faces=4, face_px=64)


class InProcess(Executor):
    """An executor that runs tasks in the calling process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSpec:
    """A corpus of a few clips, with backbones trained on a few clips."""
    return SyntheticSpec(
        place=str(tmp_path_factory.mktemp("corpus")),
        seed=3,
        labelled_per_emotion=1,
        unlabelled_clips=20,
        validation_clips=6,
        test_clips=6,
        clips_per_shard=8,
        backbone_clips=12,
    )


@pytest.fixture(scope="module")
def corpus(spec: SyntheticSpec) -> Path:
    prepare_synthetic(spec, InProcess())
    return spec.root


def members(folder: Path) -> dict[str, bytes]:
    contents = {}
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as archive:
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None
                contents[member.name] = file.read()
    return contents


def metadata(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(data) for name, data in members(folder).items() if name.endswith("json")]


def test_a_corpus_has_four_shard_sets_and_two_teachers(corpus: Path, spec: SyntheticSpec) -> None:
    counts = {name: len(metadata(Path(place))) for name, place in spec.places().items()}
    assert counts == {"labelled": 6, "unlabelled": 20, "validation": 6, "test": 6}
    for folder in spec.teachers().values():
        assert (Path(folder) / "model.safetensors").is_file()
    index = json.loads((corpus / "unlabelled" / "index.json").read_text())
    assert [entry["nsamples"] for entry in index["shardlist"]] == [8, 8, 4]


def test_a_second_call_finds_the_corpus_and_leaves_it_alone(
    corpus: Path, spec: SyntheticSpec
) -> None:
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    prepare_synthetic(spec)
    assert {path: path.stat().st_mtime_ns for path in corpus.rglob("*")} == before
    names = {path.name for path in corpus.parent.iterdir()}
    assert names == {corpus.name, "backbones-12-v1"}


@pytest.mark.slow
def test_the_same_spec_gives_the_same_bytes(
    corpus: Path, spec: SyntheticSpec, tmp_path: Path
) -> None:
    again = spec.model_copy(update={"place": str(tmp_path)})
    prepare_synthetic(again, InProcess())
    files = [path.relative_to(corpus) for path in corpus.rglob("*") if path.is_file()]
    assert len(files) > 10
    for file in files:
        assert (again.root / file).read_bytes() == (corpus / file).read_bytes(), file


def test_another_seed_gives_other_people(spec: SyntheticSpec) -> None:
    other = spec.model_copy(update={"seed": 4})
    first, second = (draw_recipes("test", seeded)[0].person for seeded in (spec, other))
    assert first.pitch_hz != second.pitch_hz


def test_nothing_beside_the_mp4_of_an_unlabelled_clip_follows_from_its_emotion(
    corpus: Path,
) -> None:
    for facts in metadata(corpus / "unlabelled"):
        assert set(facts) == {"faces", "duration_s", "source"}
    for name, data in members(corpus / "unlabelled").items():
        if name.endswith("mp4"):
            assert len(data) < 60_000
            with av.open(io.BytesIO(data)) as container:
                assert not set(container.metadata) - {
                    "major_brand",
                    "minor_version",
                    "compatible_brands",
                    "encoder",
                }
    names = " ".join(members(corpus / "unlabelled"))
    text = names + json.dumps(metadata(corpus / "unlabelled"))
    for word in (*EMOTIONS, "unlabelled-"):
        assert word not in text


def test_duration_key_and_order_do_not_depend_on_the_emotion(spec: SyntheticSpec) -> None:
    recipe = draw_recipes("unlabelled", spec)[0]
    rendered = []
    for emotion in ("sad", "angry"):
        other = replace(recipe, emotion=emotion, voice_emotion=emotion)
        key, _, metadata_of_clip = render_clip(other)
        rendered.append((key, metadata_of_clip))
    assert rendered[0] == rendered[1]


def test_no_speaker_is_in_two_sets(spec: SyntheticSpec) -> None:
    pitches = [
        {recipe.person.pitch_hz for recipe in draw_recipes(name, SyntheticSpec(seed=3))}
        for name in PEOPLE
    ]
    assert [len(speakers) for speakers in pitches] == list(PEOPLE.values())
    assert len(set.union(*pitches)) == sum(PEOPLE.values())


def test_the_unlabelled_set_is_as_awkward_as_the_world() -> None:
    recipes = draw_recipes("unlabelled", SyntheticSpec(seed=1))
    share = {
        "neutral": np.mean([recipe.emotion == "neutral" for recipe in recipes]),
        "dubbed": np.mean([recipe.voice is not recipe.person for recipe in recipes]),
        "unseen": np.mean([not recipe.seen for recipe in recipes]),
    }
    assert share == pytest.approx({"neutral": 0.6, "dubbed": 0.15, "unseen": 0.15}, abs=0.002)


def test_labelled_sets_are_balanced_over_emotions() -> None:
    for name, each in (("labelled", 2), ("validation", 20), ("test", 40)):
        emotions = [recipe.emotion for recipe in draw_recipes(name, SyntheticSpec(seed=1))]
        assert {emotion: emotions.count(emotion) for emotion in EMOTIONS} == dict.fromkeys(
            EMOTIONS, each
        )


def test_clips_decode_to_sound_and_faces_where_one_is_seen(
    corpus: Path, spec: SyntheticSpec
) -> None:
    seen = {recipe.key: recipe.seen for recipe in draw_recipes("unlabelled", spec)}
    assert set(seen.values()) == {True, False}
    for sample in read_samples(ShardVisit(0, str(corpus / "unlabelled" / "000000.tar"))):
        clip = decode_clip(sample, CLIP, 0.5)
        assert clip.waveform.size == 48_000
        assert np.abs(clip.waveform).max() > 500
        assert clip.has_face.tolist() == [seen[sample.key]] * 4


def test_a_happy_mouth_is_drawn_higher_at_its_corners_than_a_sad_one() -> None:
    person = draw_person("somebody", np.random.default_rng(0))
    frames = []
    for curve in (-1.5, 1.5):
        mood = np.zeros(FACE_DIMS)
        mood[0] = curve
        rng = np.random.default_rng(1)
        drawn, boxes = draw_clip(person, mood, np.zeros(4), False, rng)
        frames.append(drawn)
    x0, y0, x1, y1 = boxes[0].astype(int)
    changed = np.abs(frames[0][0].astype(int) - frames[1][0]).sum(axis=2) > 60
    rows, columns = np.nonzero(changed)
    assert ((rows > (y0 + y1) / 2) & (columns > x0) & (columns < x1)).all()


def test_a_high_mood_has_a_higher_voice() -> None:
    person = draw_person("somebody", np.random.default_rng(0))
    pitches = []
    for pitch in (-1.0, 1.0):
        mood = np.zeros(VOICE_DIMS)
        mood[0] = pitch
        rng = np.random.default_rng(1)
        phrase = draw_syllables(person, mood, 3.5, rng)
        sound = speak(person, mood, phrase, rng)
        echo = np.fft.irfft(np.abs(np.fft.rfft(sound, 2 * sound.size)) ** 2)
        lags = slice(SAMPLE_RATE_HZ // 480, SAMPLE_RATE_HZ // 55)
        pitches.append(SAMPLE_RATE_HZ / (lags.start + np.argmax(echo[lags])))
    assert pitches[1] > 1.2 * pitches[0]


def test_a_corpus_that_fails_half_way_leaves_nothing(spec: SyntheticSpec, tmp_path: Path) -> None:
    class Failing(InProcess):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            raise RuntimeError("no more processes")

    other = spec.model_copy(update={"place": str(tmp_path)})
    with pytest.raises(RuntimeError, match="no more processes"):
        prepare_synthetic(other, Failing())
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_no_folder_is_refused() -> None:
    with pytest.raises(SpecError, match=r"synthetic\.place"):
        prepare_synthetic(SyntheticSpec(place="s3://bucket/corpus", seed=0))
