"""Measures how much of its time a train worker waits for data, and tells when an action is due.

`StepTimer` does the first. `Every` does the second, for checkpoints, progress reports and checks
for preemption notices.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class StepTimer:
    """Times the training steps of a run, across all workers and restarts that it has had.

    The time counts from the end of the first step, so that the start of the job is left out.

    Attributes:
        first_step_at: `time.time()` at the end of this worker's first step; None before it.
    """

    def __init__(self) -> None:
        self.first_step_at: float | None = None
        self._last_step_at = 0.0
        self._waited_s = 0.0
        self._before_s = 0.0  # training time before the last restart

    def state(self) -> dict[str, float]:
        """Return the state for a checkpoint, as JSON."""
        return {"training_s": self.training_s, "waited_s": self._waited_s}

    def restore(self, state: Mapping[str, float]) -> None:
        """Continue from the state in a checkpoint."""
        self._before_s, self._waited_s = state["training_s"], state["waited_s"]

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as waiting for clips."""
        start = time.monotonic()
        yield
        if self.first_step_at is not None:
            self._waited_s += time.monotonic() - start

    def stepped(self) -> None:
        """Note that a step ends now."""
        self._last_step_at = time.time()
        if self.first_step_at is None:
            self.first_step_at = self._last_step_at

    @property
    def training_s(self) -> float:
        """Seconds from the end of the first step to the end of the last."""
        return self._before_s + self._last_step_at - (self.first_step_at or self._last_step_at)

    @property
    def wait_share(self) -> float:
        """Share of that time spent waiting for clips."""
        return min(1.0, self._waited_s / self.training_s) if self.training_s > 0 else 0.0

    def speed(self, clips: int) -> float:
        """Return clips per second; 0 before the second step."""
        return clips / self.training_s if self.training_s > 0 else 0.0


class Every:
    """Is due once per period."""

    def __init__(self, seconds: float, *, at_once: bool) -> None:
        """`at_once`: due on the first call already, not only after the first period."""
        self._seconds = seconds
        self._last = None if at_once else time.monotonic()

    def due(self) -> bool:
        """Return whether a period has passed; if so, the next one starts now."""
        now = time.monotonic()
        if self._last is not None and now - self._last < self._seconds:
            return False
        self._last = now
        return True
