"""Defines the training progress that the console, Prometheus and the trackers show."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from liser_dist.data.shard_list import Shard


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the training of a run has come, as its first worker sees it."""

    passes: int = 0  # clips trained or rejected, counted once per epoch
    total_passes: int = 0
    total_is_estimate: bool = False
    rejected: int = 0  # distinct clips
    taught: int = 0  # passes whose targets were computed; the others came from the target store
    steps: int = 0
    skipped_steps: int = 0  # whose gradient was not finite
    loss: float = float("nan")
    clips_per_s: float = 0.0
    data_wait_share: float = 0.0
    left_s: float | None = None
    scores: dict[str, float] = field(default_factory=dict)  # validation UAR of each student

    @property
    def numbers(self) -> dict[str, float]:
        """The values known so far, by the name under which they are logged.

        The names are `train/NAME` and `validation/KIND_uar`.
        """
        not_numbers = ("scores", "total_is_estimate")
        known = {f"train/{n}": value for n, value in asdict(self).items() if n not in not_numbers}
        known |= {f"validation/{kind}_uar": uar for kind, uar in self.scores.items()}
        return {name: v for name, v in known.items() if v is not None and not math.isnan(v)}


class PassTotal:
    """Estimates the passes of a run, better with each shard whose length becomes known.

    The number of clips in a shard on S3 without an index is at first only known from its size. What
    the shards read so far have in truth corrects the estimate for the others: the learning rate
    follows it.
    """

    def __init__(self, shards: Iterable[Shard], epochs: int) -> None:
        self._epochs = epochs
        self._unread = {shard.place: shard for shard in shards}
        self._unread_clips = sum(shard.clips for shard in self._unread.values())
        self._estimates = sum(shard.estimated for shard in self._unread.values())
        self._read_clips, self._read_estimate = 0, 0

    def learn(self, shard: str, clips: int) -> None:
        """Record the number of clips of a shard that was read to its end."""
        if (known := self._unread.pop(shard, None)) is None:
            return
        self._unread_clips -= known.clips
        self._estimates -= known.estimated
        self._read_clips += clips
        self._read_estimate += known.clips

    @property
    def is_estimate(self) -> bool:
        """Whether the number of clips of some shard is not known yet."""
        return self._estimates > 0

    @property
    def passes(self) -> int:
        """Clips times epochs, by what is known now."""
        ratio = self._read_clips / self._read_estimate if self._read_estimate else 1.0
        unread = self._unread_clips * (ratio if self.is_estimate else 1.0)
        return self._epochs * (self._read_clips + round(unread))
