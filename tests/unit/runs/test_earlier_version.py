"""A run that the version before the sub-packages started is resumed by this one.

`earlier_run.tar.xz` holds an unfinished run as commit 47bb712 wrote it, at step 7, with 2 of its 3
clips trained and 1 rejected. Its weights, averages and optimizer moments were set to constants.
"""

import json
import tarfile
from pathlib import Path

import pytest
import torch

from liser_dist.config.distill import DistillSpec
from liser_dist.data.shard_list import Shard
from liser_dist.errors import CheckpointError
from liser_dist.runs.checkpoint_files import list_checkpoints, load_ledger, write_checkpoint
from liser_dist.runs.checkpoints import CheckpointWriter, load_checkpoint, load_newest
from liser_dist.runs.disagreement import DisagreementRecord
from liser_dist.runs.folder import open_run
from liser_dist.students.learner import Learner
from liser_dist.students.pretrained import load_student
from liser_dist.training.timing import StepTimer

SHARDS = {"unlabelled": [Shard("/clips/a.tar", 300, "v1", 3)]}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    with tarfile.open(Path(__file__).parent / "earlier_run.tar.xz") as archive:
        # Python before 3.11.4 has no filters, and ignores this.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(tmp_path)
    return tmp_path


def spec_of(runs: Path) -> DistillSpec:
    return DistillSpec.model_validate(
        {
            "name": "a",
            "data": {"unlabelled": "clips"},
            "teachers": {"speech": {"kind": "mock"}},
            "student": {"kind": "cnn", "width": 8, "mels": 8},
            "train": {"average": 0.9},
            "output": str(runs),
        }
    )


def test_the_run_is_resumed_and_not_started_anew(runs: Path) -> None:
    run = open_run(spec_of(runs), SHARDS)
    assert run.resumed
    assert run.place == str(runs / "a" / "001")
    assert run.mark == (runs / "a" / "001" / "mark").read_text()


def test_all_of_its_checkpoint_is_restored(runs: Path) -> None:
    newest = load_newest(str(runs / "a" / "001"))
    assert newest is not None
    _, checkpoint = newest
    known = torch.ones(2, len(checkpoint.spec.emotions), dtype=torch.bool)
    learner = Learner(checkpoint.spec, known, {}, torch.device("cpu"))
    learner.restore(checkpoint)
    assert learner.steps == 7
    for number, weight in enumerate(learner.module.parameters()):
        assert (weight == number).all()
    for moments in learner.optimizer.state.values():
        assert (moments["exp_avg"] == 0.25).all()
    assert learner.tensors().keys() == checkpoint.students.keys()
    # The rest of the training loop's state.
    StepTimer().restore(checkpoint.state["clock"])
    assert checkpoint.state["taught"] == 2
    saved = checkpoint.state["opinions"]
    assert "predicted" not in saved  # which that version did not count
    restored = DisagreementRecord.from_json(saved).to_json()
    assert {name: restored[name] for name in saved} == saved


def test_its_clips_are_trained_once(runs: Path) -> None:
    (path,) = list_checkpoints(str(runs / "a" / "001"))
    ledger = load_ledger(path)
    assert (ledger.trained, ledger.rejected, ledger.passes) == (2, 1, 3)
    assert ledger.complete(0, "/clips/a.tar")
    assert ledger.reasons() == {"silent": 1}
    saved = json.loads(Path(path, "ledger.json").read_text())
    assert ledger.to_json() == saved | {"shards_in_a_row": []}


def test_its_rejections_up_to_the_checkpoint_go_on(runs: Path) -> None:
    run = runs / "a" / "001"
    later = run / "rejections" / "step-00000009.parquet"
    (first,) = later.parent.iterdir()
    later.write_bytes(first.read_bytes())
    path, checkpoint = load_newest(str(run)) or ("", None)
    assert checkpoint is not None
    assert checkpoint.parts == [first.name]
    writer = CheckpointWriter(str(run), keep=1)
    writer.resume(path, checkpoint.parts)
    writer.save(8, checkpoint, then=lambda: None)
    writer.finish()
    newest = load_newest(str(run))
    assert newest is not None
    assert (newest[0], newest[1].parts) == (writer.newest, [first.name])
    assert list_checkpoints(str(run)) == [writer.newest]


def test_its_student_can_be_loaded(runs: Path) -> None:
    (path,) = list_checkpoints(str(runs / "a" / "001"))
    student, emotions = load_student(path)
    assert len(emotions) == 6
    assert sum(weight.numel() for weight in student.parameters())


@pytest.mark.parametrize("file", ["state.json", "ledger.json"])
def test_what_an_unknown_version_wrote_is_refused_in_one_line(runs: Path, file: str) -> None:
    path = Path(list_checkpoints(str(runs / "a" / "001"))[0])
    files = {f.name: f.read_bytes() for f in path.iterdir() if f.name != "COMMITTED"}
    write_checkpoint(str(path), files | {file: b"{}"})
    with pytest.raises(CheckpointError, match="written by another version") as caught:
        _ = load_checkpoint(str(path)).state["taught"]
    assert "\n" not in str(caught.value)
