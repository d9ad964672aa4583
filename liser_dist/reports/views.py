"""Defines the data that the templates of report pages render."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from liser_dist.evaluation.assess import DetailedScores
from liser_dist.reports.disagreements import DisagreementView
from liser_dist.runs.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Matrix:
    """A confusion or agreement matrix.

    Attributes:
        title: Caption.
        axes: Meaning of rows and columns, shown in the corner cell.
        names: Emotions, which name both rows and columns.
        counts: Number of clips [emotions, emotions].
        shares: Share of each count in its row, 0 to 1.
    """

    title: str
    axes: str
    names: Sequence[str]
    counts: Sequence[Sequence[int]]
    shares: Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True)
class RejectionRow:
    """One rejection reason: its number of clips, and the first of them."""

    reason: str
    clips: int
    example: str


@dataclass(frozen=True, slots=True)
class AgreementRow:
    """How often two models predict the same emotion, on which clips."""

    models: str
    clips: str
    share: str


@dataclass(frozen=True, slots=True)
class Difference:
    """A spec field in which two runs differ."""

    field: str
    first: str
    second: str


@dataclass(frozen=True, slots=True)
class UarComparison:
    """UAR of one model in two runs, and the second minus the first in points."""

    model: str
    first: str
    second: str
    difference: str


@dataclass(frozen=True, slots=True)
class TimePart:
    """One part of the time: for each finished run its duration, and its share of the total."""

    name: str
    spent: Sequence[tuple[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """What a page shows of one run.

    Attributes:
        label: Name of the run on the page.
        place: Path or URI of the run's folder.
        finished: Whether the run has a result.
        synthetic: Whether it was trained on the synthetic corpus.
        warnings: Why the scores say less than it seems.
        settings: The most important settings, by name.
        spec: The complete spec as YAML.
        tiles: The most important numbers, by name.
        scores: Scores on test clips, by model.
        ledger: Accounting of the unlabelled clips.
        has_test_set: Whether the spec has `data.test`.
        labelled: Number of labelled clips that were used, by set.
        labelled_rejected: Number of rejected labelled clips.
        left_out: Number of labelled clips whose emotion is not in `emotions`, by emotion.
        rejections: Rejection reasons of unlabelled clips, the most frequent first.
        matrices: Confusion matrix of each model.
        agreement: How often models agree.
        teacher_shares: What each teacher predicted on unlabelled clips: a line for each teacher.
        teacher_matrix: Predictions of one teacher against the other's, if both made any.
        emotions: Emotions of the run.
        disagreements: The clips on which the teachers disagree most.
    """

    label: str
    place: str
    finished: bool
    synthetic: bool
    warnings: Sequence[str]
    settings: Mapping[str, str]
    spec: str
    tiles: Mapping[str, str]
    scores: Mapping[str, DetailedScores]
    ledger: Ledger
    has_test_set: bool
    labelled: Mapping[str, int]
    labelled_rejected: int
    left_out: Mapping[str, int]
    rejections: Sequence[RejectionRow]
    matrices: Sequence[Matrix]
    agreement: Sequence[AgreementRow]
    teacher_shares: Sequence[str]
    teacher_matrix: Matrix | None
    emotions: Sequence[str]
    disagreements: Sequence[DisagreementView]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPage:
    """The page of one run, or of two runs side by side.

    Attributes:
        title: Heading of the page.
        runs: One or two runs.
        differences: Fields in which the specs differ; empty for one run.
        comparisons: Models that both runs scored; empty for one run.
        times: Where the time of the finished runs went.
        charts: SVG charts, by name; those without data are left out.
    """

    title: str
    runs: Sequence[RunView]
    differences: Sequence[Difference]
    comparisons: Sequence[UarComparison]
    times: Sequence[TimePart]
    charts: Mapping[str, Markup]


@dataclass(frozen=True, slots=True)
class TableView:
    """A console table for a page."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TablesPage:
    """The page of a study or a benchmark.

    Attributes:
        title: Heading of the page.
        about: A line below the heading.
        tables: Tables, in the order in which they are shown.
        charts: SVG charts, shown above the tables.
        spec: The complete spec as YAML; empty if there is none.
    """

    title: str
    about: str
    tables: Sequence[TableView]
    charts: Sequence[Markup]
    spec: str
