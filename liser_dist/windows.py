"""Which window of a longer clip is heard and seen: that follows from run, epoch and key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from liser_dist.records import Provenance, stable_hash
from liser_dist.spec import DistillSpec


@dataclass(frozen=True, slots=True)
class Windows:
    """Where the windows of longer clips lie.

    With a target store they are few, epochs take turns, and no run's seed is in them: other runs
    read them too.
    """

    how: Literal["random", "even", "centred"]
    count: int
    seed: int | None

    @classmethod
    def of(cls, spec: DistillSpec, *, centred: bool) -> Windows:
        shared = spec.targets.store is not None
        count = spec.targets.windows if shared else spec.train.epochs
        how = "centred" if centred else spec.clip.windows
        return cls(how, count, None if shared else spec.seed)

    def start_share(self, clip: Provenance) -> float:
        """0 at the clip's start, 1 at its end."""
        window = clip.epoch % self.count
        match self.how:
            case "centred":
                return 0.5
            case "even":
                return (window + 0.5) / self.count
            case "random":
                seed = "" if self.seed is None else f"{self.seed}/"
                return stable_hash(f"{seed}{window}/{clip.key}") / 2**64
