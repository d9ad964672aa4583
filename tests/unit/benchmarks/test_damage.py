"""Damage is seeded, real, and mixed among good clips in known numbers."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from liser_dist.benchmarks.damage import DAMAGE_KINDS, damage, mix_damaged
from liser_dist.config.stream import ClipSpec
from liser_dist.data.clip_decoder import ClipDecoder
from liser_dist.data.shard_list import find_shards
from liser_dist.data.shards import ShardVisit, read_samples, write_shards
from liser_dist.records import Reason, Sample
from tests.films import small_film

CLIPS = 7
FACES = [[0.0, 1.0, 2.0, 30.0, 40.0]]
SEEDS = range(60)


@pytest.fixture(scope="module")
def films() -> list[bytes]:
    return [small_film(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def shards(films: Sequence[bytes], tmp_path_factory: pytest.TempPathFactory) -> str:
    place = str(tmp_path_factory.mktemp("good"))
    write_shards(((f"film-{n}", film, {"faces": FACES}) for n, film in enumerate(films)), place, 2)
    return place


def samples(place: Path) -> list[Sample]:
    found = find_shards(str(place), "place")
    return [sample for shard in found for sample in read_samples(ShardVisit(0, shard.place))]


def test_a_seed_gives_the_same_damage_again_and_never_none(films: Sequence[bytes]) -> None:
    damaged = [damage(films[0], seed) for seed in SEEDS]
    assert damaged == [damage(films[0], seed) for seed in SEEDS]
    assert films[0] not in damaged
    assert len(set(damaged)) > len(SEEDS) - len(DAMAGE_KINDS)


def test_damaged_clips_are_decoded_or_rejected_with_a_reason(films: Sequence[bytes]) -> None:
    clip = ClipSpec(faces=2, face_px=32, window_s=1.0)
    work = [
        (Sample(key=f"{seed}", shard="s", index=seed, epoch=0, video=damage(films[0], seed)), 0.5)
        for seed in SEEDS
    ]
    with ClipDecoder(clip) as decoder:
        reasons = [decoded.reason for decoded in decoder.decode_all(work)]
    assert set(reasons) <= {"", *Reason}
    assert len(set(reasons)) > 2


def test_as_many_damaged_clips_as_good_ones(
    shards: str, films: Sequence[bytes], tmp_path: Path
) -> None:
    keys = mix_damaged(shards, str(tmp_path), CLIPS, seed=3)
    written = samples(tmp_path)
    assert [sample.key for sample in written] == keys
    assert sorted(keys) == [f"{kind}-{n:06d}" for kind in ("damaged", "good") for n in range(CLIPS)]
    assert keys != sorted(keys)
    for sample in written:
        number = int(sample.key[-6:])
        assert (sample.video == films[number % len(films)]) == sample.key.startswith("good")
        assert sample.faces == str(FACES)


def test_a_mixture_follows_from_its_seed(shards: str, tmp_path: Path) -> None:
    for name, seed in {"a": 1, "b": 1, "c": 2}.items():
        (tmp_path / name).mkdir()
        mix_damaged(shards, str(tmp_path / name), CLIPS, seed)
    a, b, c = ((tmp_path / name / "000000.tar").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_good_clips_alone(shards: str, films: Sequence[bytes], tmp_path: Path) -> None:
    keys = mix_damaged(shards, str(tmp_path), CLIPS, seed=3, damaged=False)
    assert sorted(keys) == [f"good-{n:06d}" for n in range(CLIPS)]
    assert all(sample.video in films for sample in samples(tmp_path))
