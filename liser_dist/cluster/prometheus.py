"""Exports metrics of a running job through Ray's Prometheus exporter.

The exporter puts `ray_` before each of these names:

decode_clips_total{outcome}   clips that left a decoder: `decoded`, or the rejection reason
decode_busy_seconds_total     seconds that decoders spent decoding
teach_clips_total             clips for which teachers computed targets
teach_busy_seconds_total      seconds that teachers spent computing; its `rate` is the number of
                              busy teachers
train_*, validation_*_uar     the numbers of `runs.progress.Progress`, as the first worker sees them
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache

from ray.util.metrics import Counter, Gauge

DECODED = "decoded"


@cache
def _counter(name: str, description: str, tag: str = "") -> Counter:
    return Counter(name, description, tag_keys=(tag,) if tag else ())


@cache
def _gauge(name: str) -> Gauge:
    return Gauge(name, f"{name} of the run, see liser_dist/runs/progress.py")


@contextmanager
def busy(stage: str) -> Iterator[None]:
    """Count the seconds spent in the block as work of the stage."""
    started = time.monotonic()
    yield
    counter = _counter(f"{stage}_busy_seconds", f"seconds that the stage {stage} spent working")
    counter.inc(time.monotonic() - started)


def count_decoded(outcomes: Mapping[str, int]) -> None:
    """Count clips that left a decoder, by `decoded` or their rejection reason."""
    counter = _counter("decode_clips", "clips that left a decoder", "outcome")
    for outcome, clips in outcomes.items():
        counter.inc(clips, {"outcome": outcome})


def count_taught(clips: int) -> None:
    """Count clips for which teachers computed targets."""
    if clips:
        _counter("teach_clips", "clips for which teachers computed targets").inc(clips)


def set_gauges(numbers: Mapping[str, float]) -> None:
    """Set one gauge for each number of a `Progress`, such as `train/loss` as `train_loss`."""
    for name, value in numbers.items():
        _gauge(name.replace("/", "_")).set(value)
