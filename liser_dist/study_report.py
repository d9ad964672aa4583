"""A study's answers -> its table, its comparisons with their intervals, its picture."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from liser_dist.bootstrap import (
    Floats,
    count_answers,
    draw_speakers,
    interval_of,
    resampled_uar,
)
from liser_dist.evaluation import score
from liser_dist.pictures import draw_lines
from liser_dist.results import Record
from liser_dist.study_cell import Answers, Cell
from liser_dist.study_spec import StudySpec

BASE, ALONE, TOGETHER = "labels_only", ("speech_teacher", "face_teacher"), "both"
Key = tuple[str, float]  # method, share of the labels


class Row(Record):
    """A row of `study.parquet`, and of `teachers.parquet`."""

    corpus: str
    method: str
    label_share: float
    fold: int
    seed: int
    uar: float
    war: float
    macro_f1: float


class Summary(Record):
    """A method at a share of the labels: its UAR over all folds, the mean over seeds."""

    method: str
    label_share: float
    uar: float
    spread: float  # standard deviation over seeds
    low: float  # of the interval of 95 %, over test speakers and seeds
    high: float


class Gain(Record):
    """How much better one method's UAR is than another's, with its interval of 95 %."""

    label_share: float
    method: str
    over: str
    gain: float
    low: float
    high: float


class StudyResult(Record):
    """`result.json`."""

    name: str
    corpus: str
    cells: int
    test_speakers: int
    students: list[Summary]
    teachers: list[Summary]
    gains: list[Gain]
    seconds: float
    spec_hash: str


def rows_of(spec: StudySpec, said: Mapping[Cell, Sequence[Answers]]) -> list[Row]:
    """One for each method of each cell."""
    return [row_of(spec, cell, one) for cell, answers in sorted(said.items()) for one in answers]


def row_of(spec: StudySpec, cell: Cell, one: Answers) -> Row:
    scores = score(one.labels, one.logits.argmax(1))
    return Row(
        corpus=spec.study.corpus,
        method=one.method,
        **asdict(cell),
        uar=scores.uar,
        war=scores.war,
        macro_f1=scores.macro_f1,
    )


class Resampled:
    """UAR over all folds of each method and share, for each seed, in the same draws of speakers."""

    def __init__(self, spec: StudySpec, said: Mapping[Cell, Sequence[Answers]]) -> None:
        pooled: dict[tuple[Key, int], list[Answers]] = defaultdict(list)
        for cell, answers in sorted(said.items()):
            for one in answers:
                pooled[(one.method, cell.label_share), cell.seed].append(one)
        names = sorted(
            {name for parts in pooled.values() for one in parts for name in one.speakers}
        )
        seeds, resamples = spec.study.seeds, spec.study.resamples
        draws = draw_speakers(len(names), resamples)
        # A draw of labels is chance, too: seeds are drawn with the speakers, alike for all.
        turns = np.random.default_rng(1).integers(len(seeds), size=(resamples, len(seeds)))
        self.speakers = len(names)
        self._seeds: dict[Key, list[float]] = defaultdict(list)
        drawn: dict[Key, list[Floats]] = defaultdict(list)
        for (key, _), parts in pooled.items():  # methods as they were named, seeds in their order
            labels = np.concatenate([one.labels for one in parts])
            found = np.concatenate([one.logits.argmax(1) for one in parts])
            speakers = [name for one in parts for name in one.speakers]
            counts = count_answers(labels, found, speakers, names, len(spec.emotions))
            self._seeds[key].append(score(labels, found).uar)
            drawn[key].append(resampled_uar(counts, draws))
        self._drawn = {
            key: np.take_along_axis(np.array(of_seeds).T, turns, axis=1).mean(axis=1)
            for key, of_seeds in drawn.items()
        }

    def summaries(self) -> list[Summary]:
        found = []
        for (method, share), uars in self._seeds.items():
            low, high = interval_of(self._drawn[method, share])
            found.append(
                Summary(
                    method=method, label_share=share, uar=float(np.mean(uars)),
                    spread=float(np.std(uars, ddof=min(1, len(uars) - 1))), low=low, high=high,
                )
            )  # fmt: skip
        return found

    def compare(self, method: str, over: str, share: float) -> Gain | None:
        """None where one of the two was not tried."""
        one, other = (method, share), (over, share)
        if one not in self._drawn or other not in self._drawn:
            return None
        low, high = interval_of(self._drawn[one] - self._drawn[other])
        gain = float(np.mean(self._seeds[one]) - np.mean(self._seeds[other]))
        return Gain(label_share=share, method=method, over=over, gain=gain, low=low, high=high)


def compare_all(spec: StudySpec, resampled: Resampled) -> list[Gain]:
    """Each method with labels alone, and both teachers with either."""
    pairs: list[tuple[str, str]] = [
        (method, BASE) for method in spec.study.methods if method != BASE
    ]
    pairs += [(TOGETHER, alone) for alone in ALONE]
    found = (resampled.compare(*pair, share) for share in spec.study.label_shares for pair in pairs)
    return [one for one in found if one is not None]


# ---------------------------------------------------------------- what a person sees


def name_of(method: str) -> str:
    return method.replace("_", " ")


def table_of(result: StudyResult) -> Table:
    """UAR of each method at each share of the labels, with its interval."""
    shares = sorted({one.label_share for one in result.students})
    table = Table(
        "", *(f"{100 * share:g} % of the labels" for share in shares),
        title=f"{result.name}: UAR on {result.test_speakers} speakers whose labels nobody knew "
        f"[95 % interval over them and over draws], {result.corpus} corpus",
    )  # fmt: skip
    for title, summaries in (("student", result.students), ("teacher itself", result.teachers)):
        for method, of_method in _by_method(summaries).items():
            cells = [
                f"{100 * one.uar:.1f} [{100 * one.low:.1f}, {100 * one.high:.1f}]"
                for share in shares
                for one in of_method
                if one.label_share == share
            ]
            table.add_row(f"{title}: {name_of(method)}", *cells)
    return table


def gains_of(gains: Iterable[Gain]) -> Table:
    """The comparisons, in points of UAR."""
    table = Table("labels", "", "gain in points of UAR", "95 % interval")
    for one in gains:
        pair = f"{name_of(one.method)} over {name_of(one.over)}"
        interval = f"[{100 * one.low:+.1f}, {100 * one.high:+.1f}]"
        table.add_row(f"{100 * one.label_share:g} %", pair, f"{100 * one.gain:+.1f}", interval)
    return table


def draw(result: StudyResult, file: Path) -> None:
    """UAR against the share of the labels, a line a method."""
    lines: dict[str, NDArray[np.float64]] = {
        name_of(method): np.array(
            [[100 * v for v in (one.label_share, one.uar, one.low, one.high)] for one in of_method]
        )
        for method, of_method in _by_method(result.students).items()
    }
    title = f"A student of {result.corpus} clips, with few labels and many clips without"
    draw_lines(lines, title, "labels known, %", "UAR on unseen speakers, %", file)


def _by_method(summaries: Iterable[Summary]) -> dict[str, list[Summary]]:
    found: dict[str, list[Summary]] = defaultdict(list)
    for one in sorted(summaries, key=lambda one: one.label_share):
        found[one.method].append(one)
    return found
