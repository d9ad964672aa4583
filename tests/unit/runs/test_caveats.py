"""Each warning is given from its threshold on, and says what to do or what is the matter."""

from __future__ import annotations

import pytest

from liser_dist.runs.caveats import (
    warn_chance,
    warn_few_steps,
    warn_left_out,
    warn_one_emotion,
    warn_skipped_steps,
)


def test_a_handful_of_steps_is_too_few() -> None:
    (warning,) = warn_few_steps(1, 256, None)
    assert warning == (
        "1 step of training: a student learns little in fewer than 100 steps; lower "
        "`train.batch_size` (256), or raise `train.epochs`"
    )
    assert warn_few_steps(100, 256, None) == []


def test_skipped_steps_are_told() -> None:
    (warning,) = warn_skipped_steps(2, 150)
    assert warning.startswith("2 of 150 steps had a gradient that was NaN or infinite")
    assert warn_skipped_steps(0, 150) == []


def test_a_run_that_is_validated_only_at_its_end_is_told_so() -> None:
    (warning,) = warn_few_steps(150, 256, 200)
    assert "150 steps of training, and `train.validate_every` is 200" in warning
    assert warn_few_steps(200, 256, 200) == []
    assert len(warn_few_steps(99, 256, 200)) == 2


@pytest.mark.parametrize(("share", "warns"), [(1.0, True), (0.91, True), (0.9, False)])
def test_a_model_that_says_one_emotion_of_nine_in_ten_clips(share: float, warns: bool) -> None:
    warnings = warn_one_emotion(
        "the speech teacher", "unlabelled clips", {"sad": 1 - share, "disgusted": share}
    )
    assert bool(warnings) is warns
    if warns:
        assert f"the speech teacher predicted 'disgusted' for {share:.0%}" in warnings[0].replace(
            " %", "%"
        )


def test_a_model_without_predictions_is_not_warned_of() -> None:
    assert warn_one_emotion("the face teacher", "unlabelled clips", {}) == []


def test_an_interval_that_includes_chance_or_lies_below_is_told() -> None:
    (warning,) = warn_chance("the student", "test clips", 0.198, (0.14, 0.26), 6)
    assert "19.8 % (95 % interval 14.0 to 26.0)" in warning
    assert "6 emotions gives 16.7 %" in warning
    assert warn_chance("the student", "test clips", 0.1, (0.05, 0.15), 6)
    assert warn_chance("the student", "test clips", 1 / 6, (1 / 6, 1 / 6), 6)
    assert not warn_chance("the student", "test clips", 0.2, (0.17, 0.26), 6)


def test_clips_that_are_left_out_are_counted_by_emotion() -> None:
    assert warn_left_out("data.test", {"calm": 192, "surprised": 192}) == [
        "data.test: 384 clips with an emotion that is not in `emotions` left out: calm 192, "
        "surprised 192"
    ]
    assert warn_left_out("data.test", {"calm": 1})[0].startswith("data.test: 1 clip with an")
    assert warn_left_out("data.test", {}) == []
