"""Shards are found, and their clips counted, or estimated from what some of them hold."""

import json
from pathlib import Path

import pytest

from liser_dist.benchmarks.testbed.flaky_s3 import FlakyS3
from liser_dist.data.shard_list import find_shards
from liser_dist.data.shards import write_shard
from liser_dist.errors import LiserError, StorageError
from tests.unit.data.tars import tar_of


def test_clips_are_counted_with_and_without_an_index(shards: Path) -> None:
    assert [shard.clips for shard in find_shards(str(shards), "data.unlabelled")] == [10, 10, 5]
    (shards / "index.json").unlink()
    assert [shard.clips for shard in find_shards(str(shards), "data.unlabelled")] == [10, 10, 5]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"<html>not found</html>" * 200, "is damaged or not a tar file"),
        (b"", "is damaged or not a tar file"),
        (tar_of(("a.mp4", bytes(30000)))[:20000], "is truncated"),
        (tar_of(("readme.txt", b"hello")), "contains no clip"),
    ],
)
def test_a_first_shard_that_cannot_be_one_is_refused(
    tmp_path: Path, content: bytes, what: str
) -> None:
    (tmp_path / "000000.tar").write_bytes(content)
    with pytest.raises(LiserError, match=what) as error:
        find_shards(str(tmp_path), "data.unlabelled")
    assert "data.unlabelled" in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_a_place_without_shards_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(LiserError, match="no shard"):
        find_shards(str(tmp_path), "data.unlabelled")
    with pytest.raises(LiserError, match="no such file"):
        find_shards(str(tmp_path / "missing"), "data.unlabelled")


def test_a_complete_index_says_which_shards_there_are(shards: Path) -> None:
    index = json.loads((shards / "index.json").read_text()) | {"complete": True}
    (shards / "index.json").write_text(json.dumps(index))
    (shards / "left-of-a-killed-job.tar").write_bytes(b"half")
    assert [shard.clips for shard in find_shards(str(shards), "data.unlabelled")] == [10, 10, 5]
    (shards / "000001.tar").unlink()
    with pytest.raises(StorageError, match=r"000001\.tar.*remove them from index"):
        find_shards(str(shards), "data.unlabelled")


def test_an_index_that_is_none_is_passed_over(shards: Path) -> None:
    (shards / "index.json").write_text(json.dumps(["what"]))
    assert [shard.clips for shard in find_shards(str(shards), "data.unlabelled")] == [10, 10, 5]


@pytest.fixture
def bucket(s3_server: FlakyS3, tmp_path: Path) -> Path:
    """The folder of a bucket on an S3 server."""
    return tmp_path / "bucket"


def fill(shard: Path, clips: int, size_bytes: int) -> None:
    write_shard([(f"{n:02d}", bytes(size_bytes), {"faces": []}) for n in range(clips)], str(shard))


@pytest.mark.slow
def test_few_shards_on_s3_are_estimated_by_their_own_clips(bucket: Path) -> None:
    fill(bucket / "0.tar", 10, 400_000)
    fill(bucket / "1.tar", 40, 80_000)  # as of shorter films
    fill(bucket / "2.tar", 10, 200_000)
    (bucket / "3.tar").write_bytes(b"damaged" * 20_000)
    first, *others = find_shards("s3://bucket", "data.unlabelled")
    assert (first.clips, first.estimated) == (10, False)
    assert [shard.estimated for shard in others] == [True] * 3
    assert [shard.clips for shard in others[:2]] == pytest.approx([40, 10], rel=0.05)
    assert others[2].clips >= 1


@pytest.mark.slow
def test_many_shards_on_s3_are_estimated_by_a_sample(bucket: Path) -> None:
    fill(bucket / "00.tar", 10, 400_000)
    for number in range(1, 52):
        long = number // 4 % 2  # of the sampled shards and of the others, about every second one
        fill(bucket / f"{number:02d}.tar", 2 if long else 10, 200_000 if long else 40_000)
    shards = find_shards("s3://bucket", "data.unlabelled")
    clips = 10 + sum(2 if number // 4 % 2 else 10 for number in range(1, 52))
    assert sum(shard.clips for shard in shards) == pytest.approx(clips, rel=0.15)
