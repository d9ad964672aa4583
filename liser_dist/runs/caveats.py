"""Writes the warnings of a job: the reasons why its result may say less than it seems to.

Each function returns the warnings of one kind; an empty list if there is nothing to warn of.
Warnings are printed by `--check` or below the scores, and saved in `result.json` as `warnings`.
"""

from __future__ import annotations

from collections.abc import Mapping

MIN_STEPS = 100  # fewer hardly train a student
MAX_SHARE = 0.9  # of one emotion in what a model predicts; above it, a model has hardly an opinion


def warn_left_out(field: str, emotions: Mapping[str, int]) -> list[str]:
    """Warn of labelled clips that are not used, because the job does not have their emotion.

    Args:
        field: The spec's field that names the set.
        emotions: Number of these clips by emotion.
    """
    if not emotions:
        return []
    counts = ", ".join(f"{emotion} {count}" for emotion, count in emotions.items())
    total = sum(emotions.values())
    clips = "1 clip" if total == 1 else f"{total} clips"
    return [f"{field}: {clips} with an emotion that is not in `emotions` left out: {counts}"]


def warn_few_steps(steps: int, batch_size: int, validate_every: int | None) -> list[str]:
    """Warn of a training that is too short.

    Args:
        steps: Number of steps.
        batch_size: Number of clips per step.
        validate_every: Number of steps between two validations; None without validation clips.
    """
    warnings = []
    if steps < MIN_STEPS:
        warnings.append(
            f"{_steps(steps)} of training: a student learns little in fewer than {MIN_STEPS} "
            f"steps; lower `train.batch_size` ({batch_size}), or raise `train.epochs`"
        )
    if validate_every is not None and steps < validate_every:
        warnings.append(
            f"{_steps(steps)} of training, and `train.validate_every` is {validate_every}: the "
            "only validation is at the end, so there are no earlier weights to choose from; lower "
            "`train.validate_every`"
        )
    return warnings


def warn_skipped_steps(skipped: int, steps: int) -> list[str]:
    """Warn of steps that changed no weight, because their gradient was not finite.

    Args:
        skipped: Number of these steps.
        steps: Number of all steps.
    """
    if not skipped:
        return []
    return [
        f"{skipped:,} of {_steps(steps)} had a gradient that was NaN or infinite, and changed no "
        "weight; lower `train.learning_rates`, or use `train.precision: fp32`"
    ]


def _steps(steps: int) -> str:
    return f"{steps:,} step" if steps == 1 else f"{steps:,} steps"


def warn_one_emotion(model: str, clips: str, shares: Mapping[str, float]) -> list[str]:
    """Warn of a model that predicts nearly always the same emotion.

    Args:
        model: Name of the model in a sentence.
        clips: The clips in a sentence.
        shares: Share of each emotion in its predictions.
    """
    emotion = max(shares, key=lambda name: shares[name], default="")
    if not emotion or shares[emotion] <= MAX_SHARE:
        return []
    return [
        f"{model} predicted {emotion!r} for {100 * shares[emotion]:.0f} % of the {clips}: it "
        "hardly tells the emotions apart"
    ]


def warn_chance(
    model: str, clips: str, uar: float, interval: tuple[float, float], emotions: int
) -> list[str]:
    """Warn of a model that may be guessing.

    Args:
        model: Name of the model in a sentence.
        clips: The clips that it was scored on, in a sentence.
        uar: Its UAR.
        interval: The 95 % confidence interval of the UAR.
        emotions: Number of emotions among the labels of the clips.
    """
    chance, (low, high) = 1 / emotions, interval
    if low > chance:
        return []
    return [
        f"{model} is not shown to be better than chance: its UAR on the {clips} is "
        f"{100 * uar:.1f} % (95 % interval {100 * low:.1f} to {100 * high:.1f}), and guessing "
        f"among {emotions} emotions gives {100 * chance:.1f} %"
    ]


def warn_not_calibrated(fitted: float, before: float, after: float) -> list[str]:
    """Warn of a temperature that was not used, because it would raise the calibration error.

    Args:
        fitted: The temperature.
        before: Calibration error of the validation clips without it.
        after: Their calibration error with it.
    """
    if after <= before:
        return []
    return [
        f"the teacher is not calibrated: the fitted temperature {fitted:.2f} would raise the "
        f"expected calibration error of the validation clips from {100 * before:.1f} % to "
        f"{100 * after:.1f} %, so the temperature stays at 1"
    ]
