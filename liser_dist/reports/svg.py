"""Embeds matplotlib charts in a page as SVG that follows its light or dark colours."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from markupsafe import Markup

# Matplotlib does not know `currentColor`: text and axes are drawn in this colour, which is then
# replaced.
_INK = "#010203"
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.titlesize": 11,
    "legend.fontsize": 9,
    "savefig.transparent": True,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK
    ),
}


def inline_svg(draw: Callable[[Path], None]) -> Markup:
    """Return a chart as HTML.

    Args:
        draw: Draws the chart with matplotlib into the SVG file that it is given.
    """
    import matplotlib

    with tempfile.TemporaryDirectory(prefix="liser-svg-") as folder, matplotlib.rc_context(_STYLE):
        file = Path(folder) / "chart.svg"
        draw(file)
        svg = file.read_text()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    # Without width and height the chart fills its container, in the proportions of its viewBox.
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg)
    return Markup(svg.replace(_INK, "currentColor"))
