"""Where a train worker's time goes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Clock:
    """Steps and waits since the first step, over all the workers that a run has had."""

    def __init__(self) -> None:
        self.first_step_at: float | None = None  # time.time()
        self._last_step_at = 0.0
        self._waited_s = 0.0  # since the first step
        self._before_s = 0.0  # training time of the workers before these
        self._shown = 0.0

    def facts(self) -> dict[str, float]:
        """For a checkpoint."""
        return {"training_s": self.training_s, "waited_s": self._waited_s}

    def restore(self, facts: Mapping[str, float]) -> None:
        self._before_s, self._waited_s = facts["training_s"], facts["waited_s"]

    @contextmanager
    def waiting(self) -> Iterator[None]:
        start = time.monotonic()
        yield
        if self.first_step_at is not None:
            self._waited_s += time.monotonic() - start

    def stepped(self) -> None:
        self._last_step_at = time.time()
        if self.first_step_at is None:
            self.first_step_at = self._last_step_at

    def due(self, every_s: float) -> bool:
        now = time.monotonic()
        if now - self._shown < every_s:
            return False
        self._shown = now
        return True

    @property
    def training_s(self) -> float:
        """From the end of the first step to the end of the last, without what a start takes."""
        return self._before_s + self._last_step_at - (self.first_step_at or self._last_step_at)

    @property
    def wait_share(self) -> float:
        """Share of that time spent waiting for clips."""
        return min(1.0, self._waited_s / self.training_s) if self.training_s > 0 else 0.0

    def speed(self, clips: int) -> float:
        """Clips a second."""
        return clips / self.training_s if self.training_s > 0 else 0.0
