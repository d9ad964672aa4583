"""Computes the contents of the page on one run, or on two side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import yaml

from liser_dist.config.base import differences
from liser_dist.config.student import LossSpec
from liser_dist.evaluation.assess import DetailedScores, assess
from liser_dist.reports.charts import draw_charts
from liser_dist.reports.disagreements import show_disagreements
from liser_dist.reports.run_data import RunData
from liser_dist.reports.text import format_duration, format_percent, model_title
from liser_dist.reports.views import (
    AgreementRow,
    Difference,
    Matrix,
    RejectionRow,
    RunPage,
    RunView,
    TimePart,
    UarComparison,
)
from liser_dist.runs.results import DistillResult
from liser_dist.students.variants import DISTILLED

RESAMPLES = 2000
_TEACHERS = ("speech_teacher", "face_teacher")


def view_runs(runs: Sequence[RunData], disagreements: int) -> RunPage:
    """Return the page of one or two runs.

    Args:
        runs: One run, or two to compare.
        disagreements: How many of each run's teacher disagreements to show.
    """
    scores = [score_models(run) for run in runs]
    return RunPage(
        title=" compared with ".join(run.label for run in runs),
        runs=[
            _view_run(run, of_run, disagreements) for run, of_run in zip(runs, scores, strict=True)
        ],
        differences=_compare_specs(runs) if len(runs) > 1 else [],
        comparisons=_compare_scores(scores) if len(runs) > 1 else [],
        times=_time_parts(runs),
        charts=draw_charts(runs),
    )


def _view_run(run: RunData, scores: Mapping[str, DetailedScores], disagreements: int) -> RunView:
    return RunView(
        label=run.label,
        place=run.place,
        finished=run.result is not None,
        synthetic=run.spec.synthetic is not None,
        warnings=run.result.warnings if run.result else [],
        settings=_settings(run),
        spec=yaml.safe_dump(dict(run.settings), sort_keys=False),
        tiles=_tiles(run),
        scores=scores,
        ledger=run.ledger,
        has_test_set=run.spec.data.test is not None,
        labelled=run.result.clips.labelled_by_set if run.result else {},
        labelled_rejected=run.result.clips.labelled_rejected if run.result else 0,
        left_out=run.result.clips.labelled_left_out if run.result else {},
        rejections=[
            RejectionRow(reason, clips, run.ledger.examples.get(reason, ""))
            for reason, clips in run.reasons.most_common()
        ],
        matrices=[_confusion_matrix(name, of_model) for name, of_model in scores.items()],
        agreement=_agreement(run),
        teacher_shares=_teacher_shares(run),
        teacher_matrix=_teacher_matrix(run),
        emotions=run.spec.emotions,
        disagreements=show_disagreements(run, disagreements),
    )


def score_models(run: RunData) -> dict[str, DetailedScores]:
    """Score each model on the test clips that it made a prediction for.

    Returns:
        Scores by title of the model: the student, other students, then the teachers.
    """
    if run.predictions is None:
        return {}
    models = run.predictions.probabilities
    others = [name for name in models if name not in (DISTILLED, *_TEACHERS)]
    order = [name for name in (DISTILLED, *others, *_TEACHERS) if name in models]
    return {
        model_title(name): assess(*run.predictions.of(name), run.spec.emotions, {}, RESAMPLES)
        for name in order
        if run.predictions.of(name)[0]
    }


# ---------------------------------------------------------------- settings and numbers


def _settings(run: RunData) -> dict[str, str]:
    spec = run.spec
    defaults = LossSpec().model_dump()
    loss = {n: v for n, v in run.settings["loss"].items() if v != defaults.get(n)}
    return {
        "student": ", ".join(f"{name} {value}" for name, value in spec.student.model_dump().items()
                             if name in ("kind", "width", "layers", "input")),
        **{
            f"{name} teacher": f"{teacher.kind} {getattr(teacher, 'model', '')}"
            for name, teacher in spec.teachers.by_name.items()
        },
        **{name: place for name, place in spec.data.model_dump().items() if place},
        "emotions": ", ".join(spec.emotions),
        "training": f"{spec.train.epochs} epochs, batch size {spec.train.batch_size}, learning "
        f"rate {' or '.join(f'{rate:g}' for rate in spec.train.learning_rates)}",
        "loss (where not the default)": ", ".join(f"{n} {v}" for n, v in loss.items()) or "-",
        "seed": str(spec.seed),
    }  # fmt: skip


def _tiles(run: RunData) -> dict[str, str]:
    tiles: dict[str, str] = {}
    result = run.result
    if result is not None and result.student.uar is not None:
        tiles["student UAR"] = format_percent(result.student.uar)
        if result.label_only is not None and result.label_only.uar is not None:
            gain = result.student.uar - result.label_only.uar
            tiles["gain over labels only, points of UAR"] = f"{100 * gain:+.1f}"
    if result is not None:
        tiles["parameters"] = f"{result.student.params:,}"
    tiles["clips trained"] = f"{run.ledger.trained:,}"
    tiles["clips rejected"] = f"{run.ledger.rejected:,}"
    if result is not None:
        tiles["clips per second"] = f"{result.clips_per_s:,.0f}"
        tiles["total time"] = format_duration(sum(split_time(result).values()))
    return tiles


def _compare_specs(runs: Sequence[RunData]) -> list[Difference]:
    """Return the fields in which two specs differ, except for `name` and `output`."""
    return [
        Difference(field, str(first), str(second))
        for field, first, second in differences(*(run.settings for run in runs))
        if field not in ("name", "output")
    ]


def _compare_scores(scores: Sequence[Mapping[str, DetailedScores]]) -> list[UarComparison]:
    """Return the UAR of each model that both runs scored."""
    first, second = scores
    return [
        UarComparison(
            name, format_percent(first[name].uar), format_percent(second[name].uar),
            f"{100 * (second[name].uar - first[name].uar):+.1f}",
        )
        for name in first if name in second
    ]  # fmt: skip


def _time_parts(runs: Sequence[RunData]) -> list[TimePart]:
    times = [split_time(run.result) for run in runs if run.result is not None]
    return [
        TimePart(
            part,
            [
                (format_duration(of_run[part]), of_run[part] / max(1e-9, sum(of_run.values())))
                for of_run in times
            ],
        )
        for part in (times[0] if times else ())
    ]


def split_time(result: DistillResult) -> dict[str, float]:
    """Return the seconds that each part of a run took.

    For a resumed run, training time is that of all its jobs, and the rest that of the last job.
    """
    seconds = result.seconds
    waiting = result.data_wait_share * seconds.training
    startup = max(0.0, seconds.to_first_step)
    return {
        "start-up, until the first step": startup,
        "waiting for data": waiting,
        "training": seconds.training - waiting,
        "scoring and writing files": max(0.0, seconds.total - seconds.training - startup),
    }


# ---------------------------------------------------------------- confusion and agreement


def _confusion_matrix(model: str, scores: DetailedScores) -> Matrix:
    names = list(scores.confusion)
    counts = [list(row.values()) for row in scores.confusion.values()]
    title = f"{model}, UAR {format_percent(scores.uar)}"
    return _matrix(title, "label \\ prediction", names, counts)


def _teacher_shares(run: RunData) -> list[str]:
    """Return, for each teacher, the share of each emotion in its predictions."""
    return [
        f"{name} teacher: "
        + ", ".join(f"{emotion} {format_percent(share)}" for emotion, share in shares.items())
        for name, shares in run.disagreement.shares(run.spec.emotions).items()
    ]


def _teacher_matrix(run: RunData) -> Matrix | None:
    """Return both teachers' predictions on unlabelled clips; None if no clip has both."""
    counts = run.disagreement.counts
    if not counts.any():
        return None
    title = (
        f"predictions of both teachers on unlabelled clips, in {counts.sum():,} of "
        f"{run.ledger.passes:,} passes (clips, counted once per epoch). In the others a teacher "
        "has no input, or gives less than half of its probability to emotions that both know"
    )
    return _matrix(title, "speech \\ face", run.spec.emotions, counts.tolist())


def _matrix(title: str, axes: str, names: Sequence[str], counts: list[list[int]]) -> Matrix:
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    return Matrix(title, axes, names, counts, shares)


def _agreement(run: RunData) -> list[AgreementRow]:
    rows = []
    for name in ("speech", "face"):
        curve = run.curves.get(f"train/agrees_with_{name}")
        if curve is not None:
            last = format_percent(float(curve[-max(1, len(curve) // 10) :, 1].mean()))
            clips = "unlabelled, last 10 % of the steps"
            rows.append(AgreementRow(f"student, {name} teacher", clips, last))
    counts = run.disagreement.counts
    if counts.any():
        share = format_percent(float(counts.trace() / counts.sum()))
        clips = "unlabelled, with predictions of both"
        rows.append(AgreementRow("speech teacher, face teacher", clips, share))
    return rows + _test_agreement(run)


def _test_agreement(run: RunData) -> list[AgreementRow]:
    """Compare the student and the teachers pairwise, on emotions that both can predict."""
    if run.predictions is None:
        return []
    rows = []
    probabilities = run.predictions.probabilities
    models = [name for name in (DISTILLED, *_TEACHERS) if name in probabilities]
    for pair in combinations(models, 2):
        of_pair = np.array([probabilities[name] for name in pair])
        clips = np.flatnonzero(~np.isnan(of_pair).any(axis=(0, 2)))
        if len(clips):
            compared = of_pair[:, clips]
            known = compared.any(axis=1).all(axis=0)  # a model gives 0 to what it does not know
            first, second = np.where(known, compared, -1).argmax(axis=2)
            titles = ", ".join(map(model_title, pair))
            share = format_percent(float((first == second).mean()))
            rows.append(AgreementRow(titles, f"{len(clips):,} test clips", share))
    return rows
