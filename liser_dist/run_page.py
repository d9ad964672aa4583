"""One run, or two side by side -> what their page shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray
from rich.table import Table
from scipy.special import softmax

from liser_dist.assessment import Scored, assess
from liser_dist.disputed import show_disputes
from liser_dist.fields import leaves
from liser_dist.learning import DISTILLED
from liser_dist.pictures import SECOND, draw_curves, draw_reliability
from liser_dist.results import DistillResult
from liser_dist.run_facts import RunFacts
from liser_dist.svg import inline

POINTS = 60  # of a curve, each the mean of the steps around it
BINS = 10
RESAMPLES = 2000
Points = NDArray[np.float64]


class Matrix(NamedTuple):
    """Shares of a row, 0 to 1, and counts."""

    title: str
    across: str
    names: Sequence[str]
    counts: list[list[int]]
    shares: list[list[float]]


def sections_of(runs: Sequence[RunFacts], disputes: int) -> dict[str, Any]:
    """`disputes`: of how many clips of each run the teachers' quarrel is shown."""
    scored = [score_models(run) for run in runs]
    return {
        "title": " beside ".join(run.label for run in runs),
        "runs": [
            {
                "label": run.label,
                "place": run.place,
                "finished": run.result is not None,
                "synthetic": run.spec.synthetic is not None,
                "asked": asked_of(run),
                "spec": yaml.safe_dump(run.spec.model_dump(mode="json"), sort_keys=False),
                "tiles": tiles_of(run),
                "scores": scores,
                "clips": run.ledger,
                "tested": run.spec.data.test is not None,
                "labelled_rejected": run.result.clips.labelled_rejected if run.result else 0,
                "rejected": rejections_of(run),
                "matrices": [confusion_of(name, one) for name, one in scores.items()],
                "agreement": agreement_of(run),
                "quarrel": quarrel_of(run),
                "emotions": run.spec.emotions,
                "disputes": show_disputes(run, disputes),
            }
            for run, scores in zip(runs, scored, strict=True)
        ],
        "differences": differences_of(runs),
        "beside": beside(scored) if len(runs) > 1 else [],
        "times": times_of(runs),
        "pictures": pictures_of(runs),
    }


def score_models(run: RunFacts) -> dict[str, Scored]:
    """Each model on the test clips of which it said something."""
    if run.answers is None:
        return {}
    last = (DISTILLED, "speech_teacher", "face_teacher")
    others = [name for name in run.answers.logits if name not in last]
    order = [name for name in (DISTILLED, *others, *last[1:]) if name in run.answers.logits]
    return {
        told(name): assess(*run.answers.of(name), run.spec.emotions, {}, RESAMPLES)
        for name in order
        if run.answers.of(name)[0]
    }


def told(model: str) -> str:
    return "student" if model == DISTILLED else model.replace("_", " ")


# ---------------------------------------------------------------- what was asked, what came


def asked_of(run: RunFacts) -> dict[str, str]:
    spec = run.spec
    teachers = {"speech": spec.teachers.speech, "face": spec.teachers.face}
    loss = spec.loss.model_dump(exclude_defaults=True)
    return {
        "student": ", ".join(f"{name} {value}" for name, value in spec.student.model_dump().items()
                             if name in ("kind", "width", "layers", "input")),
        **{
            f"{name} teacher": f"{one.kind} {getattr(one, 'model', '')}"
            for name, one in teachers.items() if one is not None
        },
        **{name: place for name, place in spec.data.model_dump().items() if place},
        "emotions": ", ".join(spec.emotions),
        "training": f"{spec.train.epochs} epochs of batches of {spec.train.batch_size}, learning "
        f"rate {' or '.join(f'{rate:g}' for rate in spec.train.learning_rates)}",
        "loss, where not the default": ", ".join(f"{n} {v}" for n, v in loss.items()) or "-",
        "seed": str(spec.seed),
    }  # fmt: skip


def tiles_of(run: RunFacts) -> dict[str, str]:
    """The first numbers that somebody looks for."""
    found: dict[str, str] = {}
    result = run.result
    if result is not None and result.student.uar is not None:
        found["UAR of the student"] = percent(result.student.uar)
        if result.label_only is not None and result.label_only.uar is not None:
            gain = result.student.uar - result.label_only.uar
            found["points over labels alone"] = f"{100 * gain:+.1f}"
    if result is not None:
        found["parameters"] = f"{result.student.params:,}"
    found["clips trained"] = f"{run.ledger.trained:,}"
    found["clips rejected"] = f"{run.ledger.rejected:,}"
    if result is not None:
        found["clips a second"] = f"{result.clips_per_s:,.0f}"
        found["in all"] = duration(sum(time_of(result).values()))
    return found


def rejections_of(run: RunFacts) -> list[tuple[str, int, str]]:
    """Reason, clips, the first of them."""
    return [
        (reason, clips, run.ledger.examples.get(reason, ""))
        for reason, clips in run.reasons.most_common()
    ]


def differences_of(runs: Sequence[RunFacts]) -> list[tuple[str, str, str]]:
    """Fields in which two specs differ, but for their names."""
    if len(runs) < 2:
        return []
    one, two = (dict(leaves(run.spec.model_dump(mode="json"))) for run in runs)
    return [
        (field, str(one.get(field)), str(two.get(field)))
        for field in sorted(one.keys() | two.keys())
        if one.get(field) != two.get(field) and field not in ("name", "output")
    ]


def beside(scored: Sequence[Mapping[str, Scored]]) -> list[tuple[str, list[str]]]:
    """Of each model that both runs have, the UAR in either and the second's lead, in points."""
    one, two = scored
    return [
        (name, [percent(one[name].uar), percent(two[name].uar),
                f"{100 * (two[name].uar - one[name].uar):+.1f}"])
        for name in one if name in two
    ]  # fmt: skip


def times_of(runs: Sequence[RunFacts]) -> list[tuple[str, list[tuple[str, float]]]]:
    """Of each part of the time, how long it was in each run, and its share there."""
    spent = [time_of(run.result) for run in runs if run.result is not None]
    return [
        (part, [(duration(one[part]), one[part] / max(1e-9, sum(one.values()))) for one in spent])
        for part in (spent[0] if spent else ())
    ]


# ---------------------------------------------------------------- who says what


def confusion_of(model: str, scores: Scored) -> Matrix:
    names = list(scores.confusion)
    counts = [list(row.values()) for row in scores.confusion.values()]
    return matrix_of(f"{model}, {percent(scores.uar)}", "is \\ taken for", names, counts)


def quarrel_of(run: RunFacts) -> Matrix | None:
    """What the teachers said of the unlabelled clips; None where they never both spoke."""
    counts = run.opinions.counts
    if not counts.any():
        return None
    title = f"the teachers, in {counts.sum():,} of {run.ledger.passes:,} passes of unlabelled clips"
    return matrix_of(title, "speech \\ face", run.spec.emotions, counts.tolist())


def matrix_of(title: str, across: str, names: Sequence[str], counts: list[list[int]]) -> Matrix:
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    return Matrix(title, across, names, counts, shares)


def agreement_of(run: RunFacts) -> list[tuple[str, str, str]]:
    """Who with whom, on which clips, how often."""
    found = []
    for name in ("speech", "face"):
        curve = run.curves.get(f"train/agrees_with_{name}")
        if curve is not None:
            last = percent(float(curve[-max(1, len(curve) // 10) :, 1].mean()))
            clips = "unlabelled, last steps"
            found.append((f"student, {name} teacher", clips, last))
    counts = run.opinions.counts
    if counts.any():
        share = percent(float(counts.trace() / counts.sum()))
        found.append(("speech teacher, face teacher", "unlabelled, where both spoke", share))
    if run.answers is None:
        return found
    models = [m for m in (DISTILLED, "speech_teacher", "face_teacher") if m in run.answers.logits]
    for one, other in combinations(models, 2):
        both = [run.answers.logits[name] for name in (one, other)]
        rows = np.flatnonzero(~np.isnan(both).any(axis=(0, 2)))
        if len(rows):
            known = np.isfinite(np.array(both)[:, rows]).all(axis=(0, 1))  # by both
            first, second = (np.where(known, one[rows], -np.inf).argmax(axis=1) for one in both)
            share = percent(float((first == second).mean()))
            found.append((f"{told(one)}, {told(other)}", f"{len(rows):,} test clips", share))
    return found


# ---------------------------------------------------------------- pictures


def pictures_of(runs: Sequence[RunFacts]) -> dict[str, Any]:
    """By what they show; those for which there is nothing are left out."""
    losses = _curves(runs, "train/", "_loss")
    scores = _curves(runs, "validation/", "_uar", scale=100)
    agreement = _curves(runs, "train/agrees_with_", "", scale=100)
    says = "Student says what a teacher says"
    drawn = {
        "loss": losses and partial(draw_curves, losses, "Loss", "step", "mean of nearby steps"),
        "uar": scores and partial(draw_curves, scores, "UAR on validation clips", "step", "%"),
        "agreement": agreement
        and partial(draw_curves, agreement, says, "step", "% of clips"),
        "reliability": _reliability_of(runs),
    }  # fmt: skip
    return {name: inline(draw) for name, draw in drawn.items() if draw}


def _curves(runs: Sequence[RunFacts], head: str, tail: str, scale: float = 1) -> dict[str, Points]:
    return {
        _named(run, runs, told(name.removeprefix(head).removesuffix(tail))): thinned(points)
        * (1, scale)
        for run in runs
        for name, points in run.curves.items()
        if name.startswith(head) and name.endswith(tail)
    }


def _named(run: RunFacts, runs: Sequence[RunFacts], what: str) -> str:
    return what + SECOND if run is not runs[0] else what


def thinned(points: Points) -> Points:
    """[n, 2] -> at most POINTS of them, each the mean of its neighbours."""
    if len(points) <= POINTS:
        return points
    return np.array([part.mean(axis=0) for part in np.array_split(points, POINTS)])


def _reliability_of(runs: Sequence[RunFacts]) -> partial[None] | None:
    found = {}
    for run in runs:
        for name in run.answers.logits if run.answers is not None else ():
            assert run.answers is not None
            clips, logits = run.answers.of(name)
            labels = np.array([run.spec.emotions.index(clip.emotion) for clip in clips])
            if clips:
                found[_named(run, runs, told(name))] = reliability(logits, labels)
    title = "Is it as sure as it is right? Test clips"
    return partial(draw_reliability, found, title) if found else None


def reliability(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> Points:
    """[bins, 2] the mean confidence of the clips in each bin, and the share of them that is right.

    Bins hold as many clips each, ten at least.
    """
    shares = softmax(logits, axis=1)
    order = shares.max(axis=1).argsort()
    right = shares.argmax(axis=1) == labels
    groups = np.array_split(order, max(1, min(BINS, len(order) // 10)))
    return np.array([[shares.max(axis=1)[rows].mean(), right[rows].mean()] for rows in groups])


def time_of(result: DistillResult) -> dict[str, float]:
    """Seconds. Of a run that went on, training is that of all its jobs, the rest of the last."""
    seconds = result.seconds
    waiting = result.data_wait_share * seconds.training
    begun = max(0.0, seconds.to_first_step)
    return {
        "until the first step": begun,
        "waiting for clips": waiting,
        "learning": seconds.training - waiting,
        "scores and files": max(0.0, seconds.total - seconds.training - begun),
    }


# ---------------------------------------------------------------- words


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{hours:.1f} h" if hours >= 2 else f"{minutes:.0f} min" if minutes >= 2 else (
        f"{seconds:.0f} s"
    )  # fmt: skip


def cells_of(tables: Iterable[Table]) -> list[dict[str, Any]]:
    """What is shown on a screen, for a page."""
    return [
        {
            "title": table.title or "",
            "heads": [str(column.header) for column in table.columns],
            "rows": list(zip(*(list(column.cells) for column in table.columns), strict=True)),
        }
        for table in tables
    ]
