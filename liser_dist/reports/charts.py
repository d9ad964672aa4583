"""Draws the charts of a run's page: losses, scores, agreement with the teachers, calibration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from liser_dist.plots import SECOND_RUN, draw_curves, draw_reliability
from liser_dist.reports.run_data import RunData
from liser_dist.reports.svg import inline_svg
from liser_dist.reports.text import model_title

MAX_POINTS = 60  # of a curve; each is the mean of neighbouring steps
BINS = 10
_MIN_CLIPS_PER_BIN = 10
_Points = NDArray[np.float64]
_Draw = Callable[[Path], None]


def draw_charts(runs: Sequence[RunData]) -> dict[str, Markup]:
    """Return SVG charts by name: loss, uar, agreement, reliability; without those lacking data."""
    charts: dict[str, _Draw] = {}
    if losses := _curves(runs, "train/", "_loss"):
        charts["loss"] = partial(
            draw_curves, losses, "Training loss", "step", "mean over neighbouring steps"
        )
    if scores := _curves(runs, "validation/", "_uar", scale=100):
        charts["uar"] = partial(draw_curves, scores, "UAR on validation clips", "step", "%")
    if agreement := _curves(runs, "train/agrees_with_", "", scale=100):
        title = "Student agreement with each teacher"
        charts["agreement"] = partial(draw_curves, agreement, title, "step", "% of clips")
    if reliabilities := _reliabilities(runs):
        title = "Calibration on test clips"
        charts["reliability"] = partial(draw_reliability, reliabilities, title)
    return {name: inline_svg(draw) for name, draw in charts.items()}


def _curves(
    runs: Sequence[RunData], prefix: str, suffix: str, scale: float = 1
) -> dict[str, _Points]:
    """Return the curves of all runs whose logged names have this prefix and suffix."""
    return {
        _name_in_legend(
            run, runs, model_title(name.removeprefix(prefix).removesuffix(suffix))
        ): average_neighbours(points) * (1, scale)
        for run in runs
        for name, points in run.curves.items()
        if name.startswith(prefix) and name.endswith(suffix)
    }


def _name_in_legend(run: RunData, runs: Sequence[RunData], name: str) -> str:
    return name + SECOND_RUN if run is not runs[0] else name


def average_neighbours(points: _Points) -> _Points:
    """Reduce a curve [n, 2] to at most MAX_POINTS points, each the mean of neighbours."""
    if len(points) <= MAX_POINTS:
        return points
    return np.array([part.mean(axis=0) for part in np.array_split(points, MAX_POINTS)])


def _reliabilities(runs: Sequence[RunData]) -> dict[str, _Points]:
    """Return the reliability curve of each model of each run."""
    curves = {}
    for run in runs:
        for name in run.predictions.probabilities if run.predictions is not None else ():
            assert run.predictions is not None
            clips, probabilities = run.predictions.of(name)
            labels = np.array([run.spec.emotions.index(clip.emotion) for clip in clips])
            if clips:
                curves[_name_in_legend(run, runs, model_title(name))] = reliability(
                    probabilities, labels
                )
    return curves


def reliability(probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> _Points:
    """Return mean confidence and accuracy of each bin [bins, 2].

    Bins hold equally many clips, at least ten.

    Args:
        probabilities: Predictions [clips, emotions].
        labels: Indices of the true emotions [clips].
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    order = confidence.argsort()
    bins = np.array_split(order, max(1, min(BINS, len(order) // _MIN_CLIPS_PER_BIN)))
    return np.array([[confidence[rows].mean(), correct[rows].mean()] for rows in bins])
