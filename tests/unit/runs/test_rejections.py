"""Rejections are written in parts with the checkpoints, and in one file at the end of the run."""

from pathlib import Path

import pyarrow.parquet as pq

from liser_dist.runs.ledger import Rejection
from liser_dist.runs.rejections import parts_of_earlier_version, write_part, write_rejected


def rejection(index: int, shard: str = "a.tar") -> Rejection:
    return Rejection(f"k{index}", shard, index, "silent", "-91 dB")


def part(run: Path, checkpoint: str, *indices: int) -> list[str]:
    rejections = [rejection(index) for index in indices]
    return write_part(str(run), f"{run}/checkpoints/{checkpoint}", rejections)


def test_a_checkpoint_without_rejections_has_no_part(tmp_path: Path) -> None:
    assert part(tmp_path, "step-00000001-a001") == []
    assert list(tmp_path.iterdir()) == []
    assert parts_of_earlier_version(str(tmp_path), 1) == []
    write_rejected(str(tmp_path), [], lambda shard, index: False, {})
    assert pq.read_table(tmp_path / "rejected.parquet").num_rows == 0


def test_parts_are_joined_without_clips_trained_later(tmp_path: Path) -> None:
    parts = part(tmp_path, "step-00000001-a001", 0, 1) + part(tmp_path, "step-00000002-a001", 2)
    part(tmp_path, "step-00000003-a001", 3)  # of a checkpoint from which the run did not resume
    labelled = {"test": [rejection(7, "t.tar")]}
    write_rejected(str(tmp_path), parts, lambda shard, index: index == 1, labelled)
    rows = pq.read_table(tmp_path / "rejected.parquet").to_pylist()
    assert [(row["set"], row["key"]) for row in rows] == [
        ("unlabelled", "k0"), ("unlabelled", "k2"), ("test", "k7"),
    ]  # fmt: skip
    assert rows[0] == {
        "set": "unlabelled", "key": "k0", "shard": "a.tar", "index": 0, "reason": "silent",
        "detail": "-91 dB",
    }  # fmt: skip


def test_parts_of_an_earlier_version_are_those_up_to_the_step(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        part(tmp_path, f"step-{step:08d}", step)
    part(tmp_path, "step-00000001-a001", 1)
    assert parts_of_earlier_version(str(tmp_path), 10) == [
        "step-00000009.parquet", "step-00000010.parquet",
    ]  # fmt: skip
