"""Pictures of measurements."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALL = (4.6, 3.4)  # inches
SECOND = " (B)"  # ends what is of the second of two runs
COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#a463f2", "#97bbf5", "#9c6b4e")


def draw_shares(bars: Mapping[str, Mapping[str, float]], title: str, unit: str, file: Path) -> None:
    """Lying bars, each made of parts that add up; a part has one colour in all of them."""
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
    lines: Mapping[str, NDArray[np.float64]], title: str, across: str, up: str, file: Path
) -> None:
    """A line for each name, through points [n, 4]: x, y, and the least and most that y may be.

    x goes by its logarithm; the lines' points stand side by side, so that their bars can be told.
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
    """Shares [n] that add up to 1, one above the other, between `edges` [n + 1] in seconds."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 3), layout="constrained")
    stacked = [np.append(share, share[-1]) for share in shares.values()]
    axes.stackplot(edges, stacked, labels=list(shares), colors=COLOURS, step="post", linewidth=0)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, 1)
    axes.set_xlabel("seconds; each window at its middle")
    axes.set_title(title, loc="left", parse_math=False)  # a file's name, with a $ maybe
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center").set_frame_on(False)
    figure.savefig(file, dpi=130)
    pyplot.close(figure)


def _lines_of(names: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """How each is drawn: the same thing of two runs in one colour, of the second in dashes."""
    colours: dict[str, str] = {}
    for name in names:
        what = name.removesuffix(SECOND)
        colour = colours.setdefault(what, COLOURS[len(colours) % len(COLOURS)])
        yield name, {"color": colour, "linestyle": "-" if name == what else "--", "label": name}


def draw_curves(
    curves: Mapping[str, NDArray[np.float64]], title: str, across: str, up: str, file: Path
) -> None:
    """A line for each name, through points [n, 2]; small, to stand beside others."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=SMALL, layout="constrained")
    for name, line in _lines_of(curves):
        axes.plot(*curves[name].T, marker="o" if len(curves[name]) < 20 else None, **line)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(axis="y", alpha=0.3)
    _finish(figure, axes, title, file)


def draw_reliability(found: Mapping[str, NDArray[np.float64]], title: str, file: Path) -> None:
    """How often a model is right, against how sure it was: bins [n, 2], for each name."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=SMALL, layout="constrained")
    axes.plot([0, 1], [0, 1], color="#888888", linewidth=1)
    for name, line in _lines_of(found):
        axes.plot(*found[name].T, marker="o", clip_on=False, **line)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("how sure it was")
    axes.set_ylabel("share that was right")
    _finish(figure, axes, title, file)


def _finish(figure: Any, axes: Any, title: str, file: Path) -> None:
    from matplotlib import pyplot

    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2).set_frame_on(False)
    figure.savefig(file)
    pyplot.close(figure)
