"""What a job tells Prometheus while it runs, through Ray's exporter: `ray_STAGE_QUANTITY`.

decode_clips_total{outcome}   clips that left a decoder: `decoded`, or why they were rejected
decode_busy_seconds_total     time that decoders worked
teach_clips_total             clips that left the teachers
teach_busy_seconds_total      time that teachers worked: its rate is how many were busy
train_*, validation_*_uar     the numbers of `desk.Progress`, as the first worker sees them
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache

from ray.util.metrics import Counter, Gauge

DECODED = "decoded"


@cache
def _counter(name: str, about: str, tag: str = "") -> Counter:
    return Counter(name, about, tag_keys=(tag,) if tag else ())


@cache
def _gauge(name: str) -> Gauge:
    return Gauge(name, f"{name} of the run, see liser_dist/desk.py")


@contextmanager
def busy(stage: str) -> Iterator[None]:
    """Count the seconds within as work of the stage."""
    begun = time.monotonic()
    yield
    counter = _counter(f"{stage}_busy_seconds", f"time that one of the stage {stage} worked")
    counter.inc(time.monotonic() - begun)


def count_decoded(outcomes: Mapping[str, int]) -> None:
    """Clips, by `decoded` or the reason of their rejection."""
    counter = _counter("decode_clips", "clips that left a decoder", "outcome")
    for outcome, clips in outcomes.items():
        counter.inc(clips, {"outcome": outcome})


def count_taught(clips: int) -> None:
    if clips:
        _counter("teach_clips", "clips that left the teachers").inc(clips)


def tell(numbers: Mapping[str, float]) -> None:
    """Each as a gauge; of a `desk.Progress`."""
    for name, value in numbers.items():
        _gauge(name.replace("/", "_")).set(value)
