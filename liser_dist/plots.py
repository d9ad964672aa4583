"""Draws the charts of benchmarks, studies, reports and predictions with matplotlib."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALL = (4.6, 3.4)  # size in inches of a chart that stands beside others
SECOND_RUN = " (B)"  # suffix of names that belong to the second of two compared runs
COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#a463f2", "#97bbf5", "#9c6b4e")


def draw_shares(bars: Mapping[str, Mapping[str, float]], title: str, unit: str, file: Path) -> None:
    """Draw horizontal stacked bars.

    Args:
        bars: Size of each part, by bar and then by part. A part has the same colour in all bars.
        title: Title of the chart.
        unit: Label of the horizontal axis.
        file: PNG or SVG file to write.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    parts = list(dict.fromkeys(part for bar in bars.values() for part in bar))
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.7 * len(bars)), layout="constrained")
    names = list(bars)[::-1]
    left = [0.0] * len(names)
    for part, colour in zip(parts, COLOURS, strict=False):
        widths = [bars[name].get(part, 0.0) for name in names]
        axes.barh(names, widths, left=left, color=colour, label=part, height=0.6)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for row, total in enumerate(left):
        axes.text(total, row, f" {total:.0f}", va="center")
    axes.set_xlabel(unit)
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(ncols=4, loc="outside lower center").set_frame_on(False)
    figure.savefig(file, dpi=130)
    pyplot.close(figure)


def draw_lines(
    lines: Mapping[str, NDArray[np.float64]],
    title: str,
    across: str,
    up: str,
    file: Path,
    levels: Mapping[str, float] = MappingProxyType({}),
) -> None:
    """Draw lines with error bars over a logarithmic axis.

    Points with the same x are drawn side by side, so that their error bars do not overlap.

    Args:
        lines: Points [n, 4] of each line: x, y, lower and upper end of the error bar.
        title: Title of the chart.
        across: Label of the horizontal axis.
        up: Label of the vertical axis.
        file: PNG or SVG file to write.
        levels: Values of y at which a dashed line is drawn, by name.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for number, ((name, points), colour) in enumerate(zip(lines.items(), COLOURS, strict=False)):
        x, y, low, high = points.T
        aside = x * 1.03 ** (number - (len(lines) - 1) / 2)
        axes.errorbar(
            aside, y, (y - low, high - y), color=colour, marker="o", label=name,
            elinewidth=1, capsize=2,
        )  # fmt: skip
    for name, level in levels.items():
        axes.axhline(level, color="grey", linestyle="--", linewidth=1, label=name)
    shown = sorted({x for points in lines.values() for x in points[:, 0]})
    axes.set_xscale("log")
    axes.set_xticks(shown, [f"{x:g}" for x in shown])
    axes.minorticks_off()
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside right center").set_frame_on(False)
    figure.savefig(file, dpi=130)
    pyplot.close(figure)


def draw_bands(
    edges: NDArray[np.float64], shares: Mapping[str, NDArray[np.float64]], title: str, file: Path
) -> None:
    """Draw shares over time as a stacked area.

    Args:
        edges: Start of each window and end of the last [n + 1], in seconds.
        shares: Shares [n] of each name, which add up to 1 or, in silence, to 0.
        title: Title of the chart.
        file: PNG or SVG file to write.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 3), layout="constrained")
    stacked = [np.append(share, share[-1]) for share in shares.values()]
    axes.stackplot(edges, stacked, labels=list(shares), colors=COLOURS, step="post", linewidth=0)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, 1)
    axes.set_xlabel("seconds (a prediction is drawn around the centre of its window)")
    axes.set_title(title, loc="left", parse_math=False)  # a file name may contain $
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center").set_frame_on(False)
    figure.savefig(file, dpi=130)
    pyplot.close(figure)


def _line_styles(names: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the style of each line: one colour per name, dashed for the second run."""
    colours: dict[str, str] = {}
    for name in names:
        base_name = name.removesuffix(SECOND_RUN)
        colour = colours.setdefault(base_name, COLOURS[len(colours) % len(COLOURS)])
        yield (
            name,
            {"color": colour, "linestyle": "-" if name == base_name else "--", "label": name},
        )


def draw_curves(
    curves: Mapping[str, NDArray[np.float64]], title: str, across: str, up: str, file: Path
) -> None:
    """Draw a small chart with a line for each name.

    Args:
        curves: Points [n, 2] of each line.
        title: Title of the chart.
        across: Label of the horizontal axis.
        up: Label of the vertical axis.
        file: PNG or SVG file to write.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=SMALL, layout="constrained")
    for name, line in _line_styles(curves):
        axes.plot(*curves[name].T, marker="o" if len(curves[name]) < 20 else None, **line)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(axis="y", alpha=0.3)
    _finish(figure, axes, title, file)


def draw_reliability(curves: Mapping[str, NDArray[np.float64]], title: str, file: Path) -> None:
    """Draw a small reliability diagram: accuracy against confidence.

    Args:
        curves: Mean confidence and accuracy [bins, 2] of each model.
        title: Title of the chart.
        file: PNG or SVG file to write.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=SMALL, layout="constrained")
    axes.plot([0, 1], [0, 1], color="#888888", linewidth=1)
    for name, line in _line_styles(curves):
        axes.plot(*curves[name].T, marker="o", clip_on=False, **line)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("confidence")
    axes.set_ylabel("accuracy")
    _finish(figure, axes, title, file)


def _finish(figure: Any, axes: Any, title: str, file: Path) -> None:
    from matplotlib import pyplot

    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2).set_frame_on(False)
    figure.savefig(file)
    pyplot.close(figure)
