"""Formats numbers and model names for report pages."""

from __future__ import annotations

from liser_dist.students.variants import DISTILLED


def format_percent(share: float) -> str:
    """Return a share, 0 to 1, as a percentage."""
    return f"{100 * share:.1f} %"


def format_duration(seconds: float) -> str:
    """Return a duration in seconds, minutes or hours."""
    minutes, hours = seconds / 60, seconds / 3600
    if hours >= 2:
        return f"{hours:.1f} h"
    return f"{minutes:.0f} min" if minutes >= 2 else f"{seconds:.0f} s"


def model_title(model: str) -> str:
    """Return the name under which a page shows a model of a run."""
    return "student" if model == DISTILLED else model.replace("_", " ")
