"""Labelled clips are drawn and split by speaker; no speaker is in two sets."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from liser_dist.config.study import AxesSpec
from liser_dist.data.splits import (
    draw_labels,
    find_folds,
    require_all_classes,
    require_disjoint_speakers,
    require_speakers,
    split_by_fold,
)
from liser_dist.errors import SpecError
from liser_dist.records import Example


def clips(speakers: int = 4, each: int = 5) -> list[Example]:
    return [
        Example(
            key=f"{speaker}-{emotion}-{number}", shard="s", index=0, epoch=0,
            emotion=emotion, speaker=f"p{speaker}",
        )
        for speaker in range(speakers)
        for emotion in ("sad", "happy")
        for number in range(each)
    ]  # fmt: skip


def test_shares_are_nested_and_even_over_classes_and_speakers() -> None:
    pool, before = clips(), set[str]()
    for share, per_class in ((0.01, 1), (0.2, 4), (0.4, 8), (1.0, 20)):
        drawn = draw_labels(pool, share, seed=3)
        assert Counter(clip.emotion for clip in drawn) == {"sad": per_class, "happy": per_class}
        of_speaker = Counter((clip.emotion, clip.speaker) for clip in drawn)
        if per_class >= 4:
            assert set(of_speaker.values()) == {per_class // 4}
        now = {clip.key for clip in drawn}
        assert before <= now
        before = now


def test_a_draw_follows_from_its_seed_and_not_from_the_order_of_the_clips() -> None:
    pool = clips()
    one, again = draw_labels(pool, 0.2, 0), draw_labels(pool[::-1], 0.2, 0)
    assert {clip.key for clip in one} == {clip.key for clip in again}
    assert {clip.key for clip in one} != {clip.key for clip in draw_labels(pool, 0.2, 1)}


def test_the_folds_of_known_corpora_are_their_speakers() -> None:
    assert find_folds("ravdess", ["ravdess-01", "ravdess-04", "ravdess-05", "ravdess-24"], "f") == {
        "ravdess-01": 1, "ravdess-04": 1, "ravdess-05": 2, "ravdess-24": 6,
    }  # fmt: skip
    assert find_folds("cremad", ["cremad-1018", "cremad-1019", "cremad-1091"], "f") == {
        "cremad-1018": 1, "cremad-1019": 2, "cremad-1091": 5,
    }  # fmt: skip
    with pytest.raises(SpecError, match="'anna'"):
        find_folds("cremad", ["anna"], "study.folds")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("1: [anna, bert]\n2: [bert]\n", "'bert' is in the folds 1 and 2"),
        ("[anna, bert]\n", "valid dictionary"),
        (": :", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_folds_of_ones_own_are_checked(text: str | None, match: str, tmp_path: Path) -> None:
    file = tmp_path / "folds.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValidationError, match=match):
        AxesSpec(folds=str(file))


def test_folds_of_ones_own_are_kept_as_they_were(tmp_path: Path) -> None:
    file = tmp_path / "folds.yaml"
    file.write_text("1: [anna]\n2: [bert]\n")
    folds = AxesSpec(folds=str(file)).folds
    file.unlink()
    assert find_folds(folds, ["anna", "bert"], "f") == {"anna": 1, "bert": 2}
    with pytest.raises(SpecError, match="'cas' is in none of the folds"):
        find_folds(folds, ["anna", "cas"], "f")


def test_nobody_is_on_both_sides() -> None:
    train, test = clips()[:10], clips()[10:]
    require_disjoint_speakers({"labelled": train, "test": test})
    with pytest.raises(SpecError, match=r"'p1' is in `data.labelled` and in `data.test`"):
        require_disjoint_speakers({"labelled": [*train, test[0]], "test": test})


def test_a_class_or_a_speaker_that_is_missing_is_named() -> None:
    with pytest.raises(SpecError, match="no clips labelled angry"):
        require_all_classes(clips(), ("sad", "angry"), "data.labelled")
    nobody = Example(key="k", shard="s", index=0, epoch=0, emotion="sad")
    with pytest.raises(SpecError, match="k of s has no `speaker`"):
        require_speakers([nobody], "data.labelled")


def test_every_speaker_is_tested_once_and_never_learned_from_then() -> None:
    pool = clips()
    fold_of = {"p0": 1, "p1": 1, "p2": 2, "p3": 3}
    splits = split_by_fold(pool, [], fold_of)
    assert sorted(c.key for _, tested in splits.values() for c in tested) == sorted(
        c.key for c in pool
    )
    for train, tested in splits.values():
        assert not {c.speaker for c in train} & {c.speaker for c in tested}
        assert len(train) + len(tested) == len(pool)
    with pytest.raises(SpecError, match="two folds"):
        split_by_fold(pool, [], dict.fromkeys(fold_of, 1))


def test_a_test_set_of_ones_own_shares_no_speaker() -> None:
    pool, test = clips()[:20], clips()[20:]
    assert split_by_fold(pool, test, {"p0": 1, "p1": 1}) == {1: (pool, test)}
    with pytest.raises(SpecError, match=r"'p1' is in `data.labelled` and in `data.test`"):
        split_by_fold(pool, clips()[19:], {"p0": 1, "p1": 1})
