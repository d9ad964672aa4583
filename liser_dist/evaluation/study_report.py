"""Summarises the predictions of a study's cells: scores, comparisons with intervals, a chart."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from liser_dist.config.base import Record
from liser_dist.config.study import AxesSpec
from liser_dist.evaluation.study_cell import Cell, MethodPredictions
from liser_dist.plots import draw_lines
from liser_dist.students.bootstrap import (
    count_by_speaker,
    draw_speakers,
    percentile_interval,
    resample_uar,
)
from liser_dist.students.scoring import score

_BASELINE, _ONE_TEACHER, _BOTH = "labels_only", ("speech_teacher", "face_teacher"), "both"
_Floats = NDArray[np.float64]
_Key = tuple[str, float]  # method, share of the labels


class StudyRow(Record):
    """Scores of one method in one cell: a row of `study.parquet` and of `teachers.parquet`."""

    corpus: str
    method: str
    label_share: float
    fold: int
    seed: int
    uar: float
    war: float
    macro_f1: float


class MethodSummary(Record):
    """UAR of a method at one share of the labels, over all folds, averaged over seeds.

    Attributes:
        method: Name of the method.
        label_share: Share of the labels.
        uar: Mean UAR.
        spread: Standard deviation over seeds.
        low: Lower end of the 95 % interval over test speakers and seeds.
        high: Upper end of that interval.
        one_emotion: Number of cells in which all its predictions are the same emotion.
    """

    method: str
    label_share: float
    uar: float
    spread: float
    low: float
    high: float
    one_emotion: int = 0


class Gain(Record):
    """Difference in UAR between `method` and `over`, with its 95 % interval."""

    label_share: float
    method: str
    over: str
    gain: float
    low: float
    high: float


class StudyResult(Record):
    """Result of a study: `result.json`.

    `chance` is the UAR of guessing: 1 / the number of emotions among the test labels. Earlier
    versions did not write it.
    """

    name: str
    corpus: str
    cells: int
    test_speakers: int
    students: list[MethodSummary]
    teachers: list[MethodSummary]
    gains: list[Gain]
    chance: float | None = None
    seconds: float
    spec_hash: str


CellMethods = Mapping[Cell, Sequence[MethodPredictions]]


def score_cells(corpus: str, predictions: CellMethods) -> list[StudyRow]:
    """Return the scores of each method in each cell."""
    return [
        _score_method(corpus, cell, of_method)
        for cell, methods in sorted(predictions.items())
        for of_method in methods
    ]


def _score_method(corpus: str, cell: Cell, predictions: MethodPredictions) -> StudyRow:
    scores = score(predictions.labels, predictions.logits.argmax(1))
    return StudyRow(
        corpus=corpus,
        method=predictions.method,
        **asdict(cell),
        uar=scores.uar,
        war=scores.war,
        macro_f1=scores.macro_f1,
    )


class Resampled:
    """Bootstrap resamples of the UAR of each method and share, on the same draws of speakers.

    Folds are pooled. Each resample also draws seeds, because the labels that a seed draws are a
    matter of chance, too.

    Args:
        axes: Axes of the study.
        emotions: Number of emotions.
        predictions: Predictions of all methods in all cells.
    """

    def __init__(self, axes: AxesSpec, emotions: int, predictions: CellMethods) -> None:
        pooled: dict[tuple[_Key, int], list[MethodPredictions]] = defaultdict(list)
        for cell, methods in sorted(predictions.items()):
            for of_method in methods:
                pooled[(of_method.method, cell.label_share), cell.seed].append(of_method)
        names = sorted(
            {name for parts in pooled.values() for part in parts for name in part.speakers}
        )
        draws = draw_speakers(len(names), axes.resamples)
        seeds = len(axes.seeds)
        seed_draws = np.random.default_rng(1).integers(seeds, size=(axes.resamples, seeds))
        self.speakers = len(names)
        self._uars: dict[_Key, list[float]] = defaultdict(list)  # of each seed
        self._one_emotion: Counter[_Key] = Counter()  # cells
        resamples: dict[_Key, list[_Floats]] = defaultdict(list)
        # Methods keep the order in which they were given, and seeds theirs.
        for (key, _), parts in pooled.items():
            labels = np.concatenate([part.labels for part in parts])
            predicted = np.concatenate([part.logits.argmax(1) for part in parts])
            speakers = [name for part in parts for name in part.speakers]
            counts = count_by_speaker(labels, predicted, speakers, names, emotions)
            self._one_emotion[key] += sum(np.ptp(part.logits.argmax(1)) == 0 for part in parts)
            self._uars[key].append(score(labels, predicted).uar)
            resamples[key].append(resample_uar(counts, draws))
        self._resamples = {
            key: np.take_along_axis(np.array(of_seeds).T, seed_draws, axis=1).mean(axis=1)
            for key, of_seeds in resamples.items()
        }

    def summarise(self) -> list[MethodSummary]:
        """Return a summary of each method at each share of the labels."""
        summaries = []
        for (method, share), uars in self._uars.items():
            low, high = percentile_interval(self._resamples[method, share])
            summaries.append(
                MethodSummary(
                    method=method, label_share=share, uar=float(np.mean(uars)),
                    spread=float(np.std(uars, ddof=min(1, len(uars) - 1))), low=low, high=high,
                    one_emotion=self._one_emotion[method, share],
                )
            )  # fmt: skip
        return summaries

    def compare(self, method: str, over: str, share: float) -> Gain | None:
        """Return the gain of one method over another; None if one of them was not tried."""
        key, over_key = (method, share), (over, share)
        if key not in self._resamples or over_key not in self._resamples:
            return None
        low, high = percentile_interval(self._resamples[key] - self._resamples[over_key])
        gain = float(np.mean(self._uars[key]) - np.mean(self._uars[over_key]))
        return Gain(label_share=share, method=method, over=over, gain=gain, low=low, high=high)


def chance_level(predictions: CellMethods) -> float:
    """Return the UAR of guessing: 1 / the number of emotions among the labels."""
    labels = [of_method.labels for methods in predictions.values() for of_method in methods]
    return 1 / len(np.unique(np.concatenate(labels)))


def compare_methods(axes: AxesSpec, resampled: Resampled) -> list[Gain]:
    """Compare each method with labels only, and both teachers with each alone."""
    pairs: list[tuple[str, str]] = [
        (method, _BASELINE) for method in axes.methods if method != _BASELINE
    ]
    pairs += [(_BOTH, teacher) for teacher in _ONE_TEACHER]
    gains = (resampled.compare(*pair, share) for share in axes.label_shares for pair in pairs)
    return [gain for gain in gains if gain is not None]


# ---------------------------------------------------------------- tables and chart


def method_title(method: str) -> str:
    """Return the name under which tables show a method."""
    return method.replace("_", " ")


def uar_table(result: StudyResult) -> Table:
    """Return the UAR of each method at each share of the labels, with its interval."""
    shares = sorted({summary.label_share for summary in result.students})
    table = Table(
        "", *(f"{100 * share:g} % of the labels" for share in shares),
        title=f"{result.name}, {result.corpus} corpus: UAR on {result.test_speakers} held-out "
        "speakers [95 % interval over speakers and seeds]",
    )  # fmt: skip
    for title, summaries in (("student", result.students), ("teacher itself", result.teachers)):
        for method, of_method in _by_method(summaries).items():
            cells = [
                _format_summary(summary)
                for share in shares
                for summary in of_method
                if summary.label_share == share
            ]
            table.add_row(f"{title}: {method_title(method)}", *cells)
    if result.chance is not None:
        table.add_row("chance", *[f"{100 * result.chance:.1f}"] * len(shares))
    return table


def _format_summary(summary: MethodSummary) -> str:
    text = f"{100 * summary.uar:.1f} [{100 * summary.low:.1f}, {100 * summary.high:.1f}]"
    if not summary.one_emotion:
        return text
    cells = "1 cell" if summary.one_emotion == 1 else f"{summary.one_emotion} cells"
    return f"{text}, predicts only one emotion in {cells}"


def gain_table(gains: Iterable[Gain]) -> Table:
    """Return the comparisons of methods, in points of UAR."""
    table = Table("labels", "methods", "gain in points of UAR", "95 % interval")
    for gain in gains:
        pair = f"{method_title(gain.method)} over {method_title(gain.over)}"
        interval = f"[{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
        table.add_row(f"{100 * gain.label_share:g} %", pair, f"{100 * gain.gain:+.1f}", interval)
    return table


def draw_study(result: StudyResult, file: Path) -> None:
    """Draw UAR against the share of the labels, one line per method."""
    lines: dict[str, _Floats] = {
        method_title(method): np.array(
            [
                [100 * value for value in (point.label_share, point.uar, point.low, point.high)]
                for point in of_method
            ]
        )
        for method, of_method in _by_method(result.students).items()
    }
    title = f"Students trained with few labels, {result.corpus} corpus"
    levels = {} if result.chance is None else {"chance": 100 * result.chance}
    draw_lines(lines, title, "share of the labels, %", "UAR on held-out speakers, %", file, levels)


def _by_method(summaries: Iterable[MethodSummary]) -> dict[str, list[MethodSummary]]:
    by_method: dict[str, list[MethodSummary]] = defaultdict(list)
    for summary in sorted(summaries, key=lambda summary: summary.label_share):
        by_method[summary.method].append(summary)
    return by_method
