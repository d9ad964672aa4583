"""Checkpoints: whole or not there; a disk that is full costs a checkpoint, and not the run."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from liser_dist import storage
from liser_dist.checkpoints import Checkpoint, CheckpointWriter, load_checkpoint, load_newest
from liser_dist.committed import list_checkpoints, remove_later, step_of
from liser_dist.errors import CheckpointError, StorageError
from liser_dist.ledger import Ledger
from liser_dist.records import Provenance, Reason
from liser_dist.rejections import forget_after, write_rejected
from liser_dist.spec import DistillSpec

SPEC = DistillSpec.model_validate(
    {"name": "a", "data": {"unlabelled": "clips"}, "teachers": {"speech": {"kind": "mock"}}}
)


def checkpoint(value: float, ledger: Ledger | None = None) -> Checkpoint:
    weight = torch.full((3,), value)
    return Checkpoint(
        spec=SPEC,
        students={"w": weight},
        best={"distilled": {"w": weight}},
        optimizer={"step": torch.tensor(value)},
        state={"steps": int(value)},
        ledger=ledger or Ledger(),
    )


def save(writer: CheckpointWriter, *steps: int) -> None:
    for step in steps:
        writer.save(step, checkpoint(step), then=lambda: None)


def steps_in(run: Path) -> list[int]:
    return [step_of(place) for place in list_checkpoints(str(run))]


def test_the_newest_are_kept_and_read_as_they_were(tmp_path: Path) -> None:
    writer = CheckpointWriter(str(tmp_path), keep=2)
    save(writer, 1, 2, 3)
    writer.finish()
    assert steps_in(tmp_path) == [2, 3]
    place, newest = load_newest(str(tmp_path)) or ("", None)
    assert place == list_checkpoints(str(tmp_path))[-1] == writer.newest
    assert newest.students["w"].tolist() == [3.0] * 3
    assert newest.optimizer["step"] == 3


@pytest.mark.parametrize("name", ["students.safetensors", "ledger.json", "optimizer.pt"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_broken_newest_one_is_passed_over(tmp_path: Path, name: str, damage: str) -> None:
    writer = CheckpointWriter(str(tmp_path), keep=2)
    save(writer, 1, 2)
    writer.finish()
    file = Path(list_checkpoints(str(tmp_path))[-1], name)
    content = file.read_bytes()
    file.write_bytes(content[:-1] + (bytes([content[-1] ^ 1]) if damage == "flip" else b""))
    if damage == "gone":
        file.unlink()
    with pytest.raises(CheckpointError):
        load_checkpoint(str(file.parent))
    newest = load_newest(str(tmp_path))
    assert newest is not None
    assert newest[1].state["steps"] == 1


def test_one_that_was_never_committed_is_none_and_goes_with_the_old(tmp_path: Path) -> None:
    half = tmp_path / "checkpoints" / "step-00000001"
    half.mkdir(parents=True)
    (half / "students.safetensors").write_bytes(b"half")
    assert load_newest(str(tmp_path)) is None
    writer = CheckpointWriter(str(tmp_path), keep=2)
    save(writer, 2)
    writer.finish()
    assert not half.exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small disk")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(ballast: Path) -> None:
    with contextlib.suppress(OSError), ballast.open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()


def test_later_ones_than_the_one_gone_on_from_are_given_up(tmp_path: Path) -> None:
    writer = CheckpointWriter(str(tmp_path), keep=9)
    save(writer, 4, 5, 6)
    writer.finish()
    remove_later(str(tmp_path), 4)
    assert steps_in(tmp_path) == [4]


def test_a_step_that_is_saved_twice_never_touches_what_was_committed(tmp_path: Path) -> None:
    writer = CheckpointWriter(str(tmp_path), keep=1)
    save(writer, 4)
    first = list_checkpoints(str(tmp_path))
    save(writer, 4)
    writer.finish()
    (second,) = list_checkpoints(str(tmp_path))
    assert [second] != first
    assert step_of(second) == 4
    assert load_newest(str(tmp_path))


def test_when_all_are_broken_nothing_begins_anew_in_silence(tmp_path: Path) -> None:
    writer = CheckpointWriter(str(tmp_path), keep=2)
    save(writer, 1, 2)
    writer.finish()
    for place in list_checkpoints(str(tmp_path)):
        Path(place, "ledger.json").write_text("{}")
    with pytest.raises(CheckpointError, match="every checkpoint"):
        load_newest(str(tmp_path))


def test_a_full_disk_costs_the_checkpoint_and_the_next_one_counts(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = CheckpointWriter(str(small_disk), keep=2)
    ledger = Ledger()
    rejected = Provenance(key="k", shard="a", index=0, epoch=0, reason=Reason.EMPTY)
    ledger.enter([rejected])
    ballast = small_disk / "ballast"
    fill(ballast)
    writer.save(1, checkpoint(1, ledger), then=lambda: None)
    writer.save(2, checkpoint(2), then=lambda: None)
    while writer.busy:
        pass
    assert "the checkpoint of step 2 is lost" in caplog.text
    assert steps_in(small_disk) == []
    ballast.unlink()
    save(writer, 3)
    writer.finish()
    assert steps_in(small_disk) == [3]
    # What the lost checkpoint was to say of rejected clips came with the next.
    write_rejected(str(small_disk), lambda shard, index: False, {})
    assert pq.read_table(small_disk / "rejected.parquet").num_rows == 1


def test_a_last_one_that_cannot_be_kept_is_an_error(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.write_text("a file where a folder should be")
    writer = CheckpointWriter(str(run), keep=2)
    save(writer, 1)
    with pytest.raises(StorageError, match="cannot write"):
        writer.finish()


def test_rejections_after_the_restored_step_are_forgotten(tmp_path: Path) -> None:
    writer = CheckpointWriter(str(tmp_path), keep=9)
    for step in (1, 2, 3):
        ledger = Ledger()
        ledger.enter([Provenance(key=f"k{step}", shard="a", index=step, epoch=0, reason="empty")])
        writer.save(step, checkpoint(step, ledger), then=lambda: None)
    writer.finish()
    forget_after(str(tmp_path), 2)
    write_rejected(str(tmp_path), lambda shard, index: index == 1, {})
    rows = pq.read_table(tmp_path / "rejected.parquet").to_pylist()
    assert [(row["set"], row["key"]) for row in rows] == [("unlabelled", "k2")]
    assert storage.exists(str(tmp_path / "rejections"))
