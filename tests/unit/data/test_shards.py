"""Reading shards detects damage and skips finished samples."""

from pathlib import Path

import pytest
from pyroaring import BitMap

from liser_dist.data.shards import ShardVisit, read_samples, write_shards
from liser_dist.errors import LiserError
from liser_dist.records import Reason
from tests.unit.data.tars import tar_of


def test_samples_keep_where_they_came_from(shards: Path) -> None:
    shard = str(shards / "000002.tar")
    samples = list(read_samples(ShardVisit(4, shard)))
    assert [(s.key, s.shard, s.index, s.epoch) for s in samples] == [
        (f"clip-{20 + n}", shard, n, 4) for n in range(5)
    ]
    assert samples[3].video == bytes([23]) * 3023
    assert samples[0].faces == "[]"


def test_finished_clips_are_passed_over(shards: Path) -> None:
    rest = read_samples(ShardVisit(0, str(shards / "000001.tar"), finished=BitMap([0, 1, 2, 9])))
    assert [sample.index for sample in rest] == [3, 4, 5, 6, 7, 8]


def test_labels_of_an_unlabelled_shard_are_not_read(shards: Path) -> None:
    sample = next(read_samples(ShardVisit(0, str(shards / "000000.tar")), labelled=False))
    assert (sample.emotion, sample.speaker) == ("", "")
    assert next(read_samples(ShardVisit(0, str(shards / "000000.tar")))).emotion == "sad"


@pytest.mark.parametrize("kept", [0, 100, 512, 2048, 6 * 4608, 6 * 4608 + 700, 40000])
def test_a_cut_shard_gives_what_lies_before_the_cut_and_one_rejection(
    shards: Path, kept: int
) -> None:
    shard = shards / "000001.tar"
    shard.write_bytes(shard.read_bytes()[:kept])
    *before, last = read_samples(ShardVisit(0, str(shard)))
    assert last.reason == Reason.SHARD_DAMAGED
    assert last.index == len(before) < 10
    assert [sample.key for sample in before] == [f"clip-{10 + n}" for n in range(len(before))]


def test_the_same_clips_give_the_same_bytes(tmp_path: Path) -> None:
    clips = [("a", b"video", {"faces": []}), ("b", b"other", {})]
    for name in ("one", "two"):
        write_shards(iter(clips), str(tmp_path / name), clips_per_shard=10)
    first, second = (tmp_path / name / "000000.tar" for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()


def test_a_clip_without_video_or_with_broken_json_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(
        tar_of(("a.json", b"{}"), ("b.mp4", b"x"), ("b.json", b"{no"), ("c.mp4", b"x"))
    )
    reasons = [sample.reason for sample in read_samples(ShardVisit(0, str(tmp_path / "s.tar")))]
    assert reasons == [Reason.NO_VIDEO, Reason.BAD_METADATA, ""]


def test_a_clip_that_is_whole_before_the_damage_is_given_out(tmp_path: Path) -> None:
    complete = tar_of(*((f"c{n}.mp4", bytes([n]) * 3000) for n in range(4)))
    cut_in_the_fourth = complete[: 3 * (512 + 3072) + 512 + 1000]
    (tmp_path / "s.tar").write_bytes(cut_in_the_fourth)
    keys = [sample.key for sample in read_samples(ShardVisit(0, str(tmp_path / "s.tar")))]
    assert keys == ["c0", "c1", "c2", "s.tar#3"]


def test_hostile_names_and_json_cost_that_clip_alone(tmp_path: Path) -> None:
    deep = b"[" * 200_000
    members = (("caf\udce9.mp4", b"x"), ("b.json", deep), ("b.mp4", b"x"), ("c.mp4", b"x"))
    (tmp_path / "s.tar").write_bytes(tar_of(*members))
    samples = list(read_samples(ShardVisit(0, str(tmp_path / "s.tar"))))
    assert [sample.reason for sample in samples] == ["", Reason.BAD_METADATA, ""]
    assert all(sample.key.isascii() or sample.key.encode() for sample in samples)


def test_a_shard_that_cannot_be_reached_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(LiserError, match="no such file"):
        list(read_samples(ShardVisit(0, str(tmp_path / "gone.tar"))))
