"""Pictures as SVG within a page, in the page's own colours, light or dark."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from markupsafe import Markup

# What matplotlib draws in this colour takes the page's: it knows no `currentColor`.
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


def inline(draw: Callable[[Path], None]) -> Markup:
    """What `draw` leaves in the file that it is given, to be put into HTML."""
    import matplotlib

    with tempfile.TemporaryDirectory(prefix="liser-svg-") as folder, matplotlib.rc_context(_STYLE):
        file = Path(folder) / "picture.svg"
        draw(file)
        drawn = file.read_text()
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn[drawn.index("<svg") :], flags=re.S)
    # As wide as there is room; its proportions stand in the viewBox.
    drawn = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", drawn)
    drawn = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", drawn)
    return Markup(drawn.replace(_INK, "currentColor"))
