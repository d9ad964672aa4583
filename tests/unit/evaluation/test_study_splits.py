"""Mistakes in a study's labels are found before a backbone computes anything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from liser_dist.config.study import StudySpec
from liser_dist.data.shard_list import find_shards
from liser_dist.data.shards import write_shards
from liser_dist.errors import SpecError
from liser_dist.evaluation.study_cell import Cell
from liser_dist.evaluation.study_splits import check_labels, draw_splits
from liser_dist.records import TEACHERS, Example, Targets

EMOTIONS = ("sad", "happy")


def spec_of(**change: Any) -> StudySpec:
    backbone = {"kind": "backbone", "model": "m"}
    return StudySpec.model_validate(
        {
            "name": "s",
            "emotions": EMOTIONS,
            "data": {"unlabelled": "a", "labelled": "b"},
            "teachers": {"speech": backbone, "face": backbone},
            "loss": {"embedding": 1.0},
            "targets": {"store": "d"},
            "study": {"folds": {1: ["ann"], 2: ["bob"]}, "label_shares": [1.0], "seeds": [0]},
        }
        | change
    )


def check(tmp_path: Path, spec: StudySpec, *labels: dict[str, str]) -> None:
    samples = ((f"clip-{n}", b"no film", of_clip) for n, of_clip in enumerate(labels))
    write_shards(samples, str(tmp_path), clips_per_shard=3)
    check_labels(spec, {"labelled": find_shards(str(tmp_path), "data.labelled")})


GOOD = [{"speaker": s, "emotion": e} for s in ("ann", "bob") for e in (*EMOTIONS, "calm")]


def test_labels_that_every_cell_can_learn_from_pass(tmp_path: Path) -> None:
    check(tmp_path, spec_of(), *GOOD)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"speaker": "cas", "emotion": "sad"}, r"`study.folds`: speaker 'cas' is in none"),
        ({"emotion": "sad"}, r"`data.labelled`: the clip clip-6 .* has no `speaker`"),
    ],
)
def test_a_speaker_without_a_fold_and_a_clip_without_a_speaker_are_refused(
    tmp_path: Path, labels: dict[str, str], words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        check(tmp_path, spec_of(), *GOOD, labels)


def test_an_emotion_that_one_fold_alone_has_is_refused(tmp_path: Path) -> None:
    only_bob = [one for one in GOOD if one != {"speaker": "ann", "emotion": "happy"}]
    with pytest.raises(SpecError, match=r"`data.labelled` has no clips labelled happy"):
        check(tmp_path, spec_of(), *only_bob)


def example(number: int, speaker: str, emotion: str) -> Example:
    given = Targets(embedding=np.ones(4, np.float16))
    return Example(
        key=f"k{number}", shard="s", index=number, epoch=0, speaker=speaker, emotion=emotion,
        targets=dict.fromkeys(TEACHERS, given),
    )  # fmt: skip


CLIPS = [
    example(n, one["speaker"], one["emotion"])
    for n, one in enumerate(one for one in GOOD if one["emotion"] in EMOTIONS)
]


def test_each_fold_is_tested_on_the_clips_of_its_speakers() -> None:
    splits = draw_splits(spec_of(), CLIPS, [])
    assert {cell: (set(s.train), set(s.test)) for cell, s in splits.items()} == {
        Cell(1.0, 1, 0): ({2, 3}, {0, 1}), Cell(1.0, 2, 0): ({0, 1}, {2, 3}),
    }  # fmt: skip


def test_clips_without_a_face_are_told_as_such() -> None:
    faceless = [replace(clip, targets={"speech": clip.targets_from("speech")}) for clip in CLIPS]
    with pytest.raises(SpecError) as caught:
        draw_splits(spec_of(), faceless, [])
    message = str(caught.value)
    assert message.startswith("`data.labelled`: 2 of 2 clips show no face")
    assert "give video, not audio files" in message
    assert "has no clips labelled" not in message
