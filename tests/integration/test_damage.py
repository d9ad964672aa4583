"""Damaged clips cost a job themselves, and no clip beside them."""

from pathlib import Path

from liser_dist.damage import break_clips
from liser_dist.records import Reason
from liser_dist.spec import DistillSpec
from tests.integration.conftest import SMALL

CLIPS = 20


def test_damaged_clips_are_rejected_and_the_good_ones_trained(clips: Path, tmp_path: Path) -> None:
    train = {"workers": 1, "batch_size": 8, "labelled_batch_size": 0, "checkpoint_every": 2}
    counting = {"data": {"unlabelled": str(clips)}, "student": {"kind": "counting"}, "train": train}
    row = break_clips(DistillSpec.model_validate(SMALL | counting), tmp_path, CLIPS)
    assert row.good == row.good_trained_once == CLIPS
    assert row.damaged == CLIPS == row.damaged_trained + row.damaged_rejected
    assert 0 < row.damaged_rejected == sum(row.reasons.values())
    assert set(row.reasons) <= set(Reason)
    assert (row.lost, row.twice, row.left_behind) == (0, 0, [])
