"""The model card says of the training data what the run used of it."""

from __future__ import annotations

from typing import Any

from liser_dist.config.distill import DistillSpec
from liser_dist.export.model_card import write_card
from liser_dist.export.result import Export
from liser_dist.runs.results import DistillResult, RunClipCounts, Seconds, StudentScores

SPEC = DistillSpec.model_validate(
    {
        "name": "small",
        "emotions": ["sad", "happy"],
        "data": {"unlabelled": "a", "labelled": "b", "validation": "c", "test": "d"},
        "teachers": {"speech": {"kind": "mock"}},
    }
)
EXPORT = Export(
    name="small", checkpoint="small/001/checkpoints/step-1", student="distilled", finished=True,
    passes=63, params=10, parity_max_abs=0.0, int8_max_abs=0.0, compared=1, clips=1, onnx_bytes=1,
    int8_bytes=1, front_bytes=1, uar=None, int8_uar=None, real_time_factor=0.1, p99_ms=None,
    scores=None, footprints={},
)  # fmt: skip
SETS = {"labelled": 959, "validation": 240, "test": 241}  # clips in the shards


def result(**change: Any) -> DistillResult:
    counts: dict[str, Any] = {
        "total": 21, "trained": 21, "rejected": 0, "passes": 63, "taught": 63, "unsure": 0,
        "differing": 0, "labelled": 1055, "labelled_rejected": 0,
    }  # fmt: skip
    return DistillResult(
        name="small", seed=0, steps=1, clips_per_s=1.0, data_wait_share=0.0, checkpoint="c",
        spec_hash="h", clips=RunClipCounts(**(counts | change)),
        seconds=Seconds(to_first_step=1, training=1, total=1),
        student=StudentScores(params=10, learning_rate=0.1),
    )  # fmt: skip


def card(of_run: DistillResult | None) -> str:
    return write_card(EXPORT, SPEC, SPEC.teachers.by_name, of_run, SETS)


def test_it_counts_the_labelled_clips_that_were_used() -> None:
    text = card(
        result(
            labelled_by_set={"labelled": 703, "validation": 176, "test": 176},
            labelled_left_out={"calm": 192, "surprised": 193},
        )
    )
    assert "| labelled training clips | 703 |" in text
    assert "weights | 176 |" in text
    assert "| held-out test clips | 176 |" in text
    assert "385: calm 192, surprised 193 |" in text
    assert not any(str(count) in text for count in SETS.values())


def test_without_a_result_it_says_that_the_counts_are_those_of_the_shards() -> None:
    for of_run in (None, result()):  # unfinished, or of a version that did not count by set
        assert "clips in the shards, of which some may not have been used | 959 |" in card(of_run)
