"""A checkpoint is complete or does not exist; a full disk costs a checkpoint, not the run.

Two first workers of one run, of which one was cut off, do not damage each other's checkpoints.
"""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from liser_dist.config.distill import DistillSpec
from liser_dist.errors import CheckpointError, StorageError
from liser_dist.records import Provenance, Reason
from liser_dist.runs.checkpoint_files import list_checkpoints, position_of
from liser_dist.runs.checkpoints import Checkpoint, CheckpointWriter, load_checkpoint, load_newest
from liser_dist.runs.ledger import Ledger
from liser_dist.runs.rejections import write_rejected

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


def wait_for(writer: CheckpointWriter) -> None:
    while writer.busy:
        pass


def save(writer: CheckpointWriter, *steps: int) -> None:
    for step in steps:
        writer.save(step, checkpoint(step), then=lambda: None)


def save_rejecting(writer: CheckpointWriter, *steps: int) -> None:
    """Save checkpoints that each come with one rejected clip, with the number of the step."""
    for step in steps:
        ledger = Ledger()
        ledger.enter([Provenance(key=f"k{step}", shard="a", index=step, epoch=0, reason="empty")])
        writer.save(step, checkpoint(step, ledger), then=lambda: None)
    wait_for(writer)


def step_of(place: str) -> int:
    position = position_of(place)
    assert position is not None
    return position.step


def steps_in(run: Path) -> list[int]:
    return [step_of(place) for place in list_checkpoints(str(run))]


def resumed(run: Path, keep: int = 9) -> tuple[CheckpointWriter, int]:
    """Start again as the first worker of a run, with the step from which it resumes."""
    writer = CheckpointWriter(str(run), keep)
    found = load_newest(str(run))
    assert found is not None
    writer.resume(found[0], found[1].parts)
    return writer, found[1].state["steps"]


def rejected_in(run: Path) -> list[str]:
    """Write `rejected.parquet` as the end of the run does, and return the keys in it."""
    found = load_newest(str(run))
    assert found is not None
    write_rejected(str(run), found[1].parts, lambda shard, index: False, {})
    return [row["key"] for row in pq.read_table(run / "rejected.parquet").to_pylist()]


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


def test_damaged_ones_after_the_one_resumed_from_are_removed(tmp_path: Path) -> None:
    writer = CheckpointWriter(str(tmp_path), keep=9)
    save(writer, 4, 5, 6)
    writer.finish()
    for place in list_checkpoints(str(tmp_path))[1:]:
        Path(place, "ledger.json").write_text("{}")
    _, step = resumed(tmp_path)
    assert step == 4
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
    wait_for(writer)
    assert "without the checkpoint of step 2, which could not be written" in caplog.text
    assert steps_in(small_disk) == []
    ballast.unlink()
    save(writer, 3)
    writer.finish()
    assert steps_in(small_disk) == [3]
    # What the lost checkpoint was to say of rejected clips came with the next.
    assert rejected_in(small_disk) == ["k"]


def test_a_last_one_that_cannot_be_kept_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    writer = CheckpointWriter(str(tmp_path), keep=2)
    save(writer, 1)
    with pytest.raises(StorageError, match="cannot write"):
        writer.finish()


@pytest.mark.parametrize("end", ["save", "finish"])
def test_a_fault_in_the_background_is_logged_and_ends_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, end: str
) -> None:
    def failing() -> None:
        raise MemoryError("no memory for the curves")

    writer = CheckpointWriter(str(tmp_path), keep=2)
    writer.save(7, checkpoint(7), then=failing)
    wait_for(writer)
    assert "writing the checkpoint of step 7 failed" in caplog.text
    assert "MemoryError: no memory for the curves" in caplog.text
    with pytest.raises(MemoryError):
        save(writer, 8) if end == "save" else writer.finish()
    assert steps_in(tmp_path) == [7]


def test_what_the_user_put_beside_checkpoints_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    names = ["best", "step-best", "step-00000001-copy", "old-step-00000001"]
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "COMMITTED").write_text("{}")
    (folder / "notes.txt").write_text("no folder")
    uploads: list[int] = []
    writer = CheckpointWriter(str(tmp_path), keep=2)
    for step in (1, 2, 3):
        writer.save(step, checkpoint(step), then=lambda: uploads.append(1))
    writer.finish()
    assert steps_in(tmp_path) == [2, 3]
    assert len(uploads) == 3
    assert resumed(tmp_path)[1] == 3
    assert {path.name for path in folder.iterdir()} >= {*names, "notes.txt"}


# ---------------------------------------------------------------- rejections


def test_rejections_after_the_restored_step_are_forgotten(tmp_path: Path) -> None:
    writer = CheckpointWriter(str(tmp_path), keep=9)
    save_rejecting(writer, 1, 2, 3)
    writer.finish()
    Path(list_checkpoints(str(tmp_path))[-1], "state.json").write_text("damaged")
    writer, step = resumed(tmp_path)
    assert step == 2
    save_rejecting(writer, 4)
    writer.finish()
    assert rejected_in(tmp_path) == ["k1", "k2", "k4"]


def test_a_part_whose_checkpoint_was_not_committed_does_not_count(tmp_path: Path) -> None:
    writer = CheckpointWriter(str(tmp_path), keep=9)
    save_rejecting(writer, 1, 2)
    writer.finish()
    Path(list_checkpoints(str(tmp_path))[-1], "COMMITTED").unlink()  # killed just before
    writer, step = resumed(tmp_path)
    assert step == 1
    save(writer, 2)
    writer.finish()
    assert rejected_in(tmp_path) == ["k1"]


# ---------------------------------------------------------------- two first workers


def test_one_that_was_cut_off_does_not_disturb_its_successor(tmp_path: Path) -> None:
    first = CheckpointWriter(str(tmp_path), keep=9)
    save_rejecting(first, 1, 2)
    second, step = resumed(tmp_path)
    assert step == 2
    # The first goes on, faster than its successor; both save steps of the same number.
    save_rejecting(first, 3, 4, 5)
    save_rejecting(second, 3)
    save_rejecting(first, 6, 7)
    save(second, 4)
    first.finish()
    second.finish()
    for place in list_checkpoints(str(tmp_path)):
        assert load_checkpoint(place).state["steps"] == step_of(place)
    assert steps_in(tmp_path) == [1, 2, 3, 4, 5, 6, 7, 3, 4]
    assert rejected_in(tmp_path) == ["k1", "k2", "k3"]
    third, step = resumed(tmp_path, keep=2)
    assert step == 4
    save_rejecting(third, 5)
    third.finish()
    names = [Path(place).name for place in list_checkpoints(str(tmp_path))]
    assert names == ["step-00000004-a002", "step-00000005-a003"]
    assert rejected_in(tmp_path) == ["k1", "k2", "k3", "k5"]


def test_one_that_was_cut_off_may_write_at_any_moment(tmp_path: Path) -> None:
    first = CheckpointWriter(str(tmp_path), keep=2)
    save_rejecting(first, 1)
    second, _ = resumed(tmp_path, keep=2)
    for step in (2, 3, 4, 5):  # both at once
        save(first, step + 10)
        save(second, step)
    with contextlib.suppress(StorageError):  # the second removes what the first has not committed
        first.finish()
    second.finish()
    _, step = resumed(tmp_path)
    assert step == 5
    assert rejected_in(tmp_path) == ["k1"]


def test_one_that_was_cut_off_removes_nothing_of_its_successor(tmp_path: Path) -> None:
    first = CheckpointWriter(str(tmp_path), keep=1)
    save(first, 1)
    wait_for(first)
    second, _ = resumed(tmp_path)
    save(second, 2, 3, 4)
    wait_for(second)
    half = tmp_path / "checkpoints" / "step-00000005-a002"  # the second is writing it
    half.mkdir()
    save(first, 8, 9)
    first.finish()
    second.finish()
    assert steps_in(tmp_path) == [9, 2, 3, 4]
    assert half.exists()


def test_a_start_that_saved_nothing_has_its_number_for_itself(tmp_path: Path) -> None:
    writers = [CheckpointWriter(str(tmp_path), keep=9) for _ in range(3)]
    for writer in reversed(writers):
        save(writer, 1)
        writer.finish()
    assert len({writer.newest for writer in writers}) == 3
    found = load_newest(str(tmp_path))
    assert found is not None
    assert found[0] == writers[-1].newest


def test_a_start_has_a_greater_number_than_any_checkpoint(tmp_path: Path) -> None:
    writer = CheckpointWriter(str(tmp_path), keep=9)
    save(writer, 5)
    writer.finish()
    assert writer.newest is not None
    Path(writer.newest).rename(tmp_path / "checkpoints" / "step-00000005-a041")
    writer, _ = resumed(tmp_path)
    save(writer, 5)
    writer.finish()
    assert writer.newest is not None
    assert Path(writer.newest).name == "step-00000005-a042"
