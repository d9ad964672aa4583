"""Stored targets are reused, and give the same clips and weights as computing them again."""

from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import COUNTING, SLOW, Job, Kill, same

pytestmark = pytest.mark.usefixtures("ray_cluster")

# Whoever asks this teacher waits for hours.
NEVER_ASKED = {"speech": {"kind": "mock", "seconds_per_clip": 1000}, "face": {"kind": "mock"}}


@pytest.mark.long
def test_a_store_that_was_filled_without_a_student_gives_the_weights_of_a_job_that_taught(
    job: Job, labelled: dict[str, str], clips: Path, tmp_path: Path
) -> None:
    change: dict[str, Any] = {
        "deterministic": True,
        "data": {"unlabelled": str(clips), **labelled},
        "augment": {"gain_db": 0},
        "train": {"workers": 2, "epochs": 3},
        "student": {"width": 8, "input": "both", "face_px": 16},
    }
    store = {"store": str(tmp_path / "store"), "input": "log_mel"}
    other = {**change["student"], "width": 16}
    filled = job("--teach-only", **change | {"student": other, "targets": store})
    assert filled.code == 0, filled.err
    assert Path(filled.out.splitlines()[-1]).parent == tmp_path / "store"
    reading = job(**change | {"targets": store, "teachers": NEVER_ASKED})
    assert reading.code == 0, reading.err
    clips_of = reading.result["clips"]
    assert (clips_of["trained"], clips_of["passes"], clips_of["taught"]) == (29, 87, 0)
    assert reading.result["speech_teacher"]["uar"] >= 0
    teaching = job(**change | {"targets": {**store, "store": str(tmp_path / "empty")}})
    assert teaching.code == 0, teaching.err
    assert (teaching.result["clips"]["passes"], teaching.result["clips"]["taught"]) == (87, 29)
    assert same(reading.weights, teaching.weights)


def test_no_clip_is_lost_or_trained_twice_whatever_the_store_holds(
    killed: Kill, job: Job, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    change: dict[str, Any] = {
        "student": COUNTING,
        "teachers": SLOW,
        "train": {"workers": 2, "checkpoint_every": 1, "keep": 100, "epochs": 3},
        "targets": {"store": str(store)},
    }
    killed(**change)
    for part in list(store.rglob("*.parquet"))[:1]:
        part.write_bytes(part.read_bytes()[:-50])
    again = job(**change)
    assert again.code == 0, again.err
    assert set(again.weights["counts"].tolist()) == {1.0}
    assert again.result["clips"]["passes"] == 87
