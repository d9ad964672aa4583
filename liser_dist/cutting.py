"""Speech and shot changes of a film -> the pieces of it that may become clips."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from liser_dist.ingest_spec import CutSpec
from liser_dist.scanning import Scan, Span

BEFORE_CUT_S = 0.02  # a clip ends so long before the first frame of the next shot


def cut_pieces(scan: Scan, spec: CutSpec) -> tuple[list[Span], list[Span]]:
    """Pieces of `min_s` to `max_s`, and what is too short for one, in the order of the film.

    Speech with no longer pause than `pause_s`, with a margin, ends where the shot changes; what is
    longer than `max_s` is divided evenly.
    """
    pieces: list[Span] = []
    short: list[Span] = []
    for start_s, end_s in _between_cuts(_joined(scan, spec), scan.cuts_s):
        parts = max(1, math.ceil((end_s - start_s) / spec.max_s - 1e-6))
        each_s = (end_s - start_s) / parts
        found = pieces if each_s >= spec.min_s else short
        found += [(start_s + n * each_s, start_s + (n + 1) * each_s) for n in range(parts)]
    return pieces, short


def _joined(scan: Scan, spec: CutSpec) -> Iterator[Span]:
    """Spans of speech with their margins, joined over short pauses."""
    last: Span | None = None
    for start_s, end_s in scan.speech:
        start_s = max(0.0, start_s - spec.margin_s)
        end_s = min(scan.length_s, end_s + spec.margin_s)
        if last is not None and start_s - last[1] <= spec.pause_s - 2 * spec.margin_s:
            last = last[0], end_s
            continue
        if last is not None:
            yield last
        last = start_s, end_s
    if last is not None and last[1] > last[0]:
        yield last


def _between_cuts(spans: Iterator[Span], cuts_s: Sequence[float]) -> Iterator[Span]:
    for start_s, end_s in spans:
        inside = [cut_s for cut_s in cuts_s if start_s < cut_s < end_s]
        for first_s, next_s in zip([start_s, *inside], [*inside, end_s], strict=True):
            last_s = next_s if next_s == end_s else next_s - BEFORE_CUT_S
            if last_s > first_s:
                yield first_s, last_s
