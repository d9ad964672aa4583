"""What the parts of one run tell each other beside the stream: which clips are known to be bad,
how far the run is, and what ended it.

A plain class; `pipeline.open_desk` makes it an actor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

from pyroaring import BitMap

from liser_dist.errors import LiserError
from liser_dist.records import Reason
from liser_dist.targets import Part


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the training of a run is, as its first worker sees it."""

    passes: int = 0  # clips trained or rejected, counted once an epoch
    total_passes: int = 0
    rejected: int = 0  # distinct clips
    taught: int = 0  # passes of which the teachers were asked; the others came from the store
    steps: int = 0
    loss: float = float("nan")
    clips_per_s: float = 0.0
    data_wait_share: float = 0.0
    left_s: float | None = None
    scores: dict[str, float] = field(default_factory=dict)  # validation UAR of each kind

    @property
    def numbers(self) -> dict[str, float]:
        """What is known by now: `train/NAME`, `validation/KIND_uar`."""
        known = {f"train/{name}": value for name, value in asdict(self).items() if name != "scores"}
        known |= {f"validation/{kind}_uar": uar for kind, uar in self.scores.items()}
        return {name: v for name, v in known.items() if v is not None and not math.isnan(v)}


Clip = tuple[str, int]  # shard, index


class Desk:
    def __init__(self) -> None:
        self._rejected: dict[tuple[str, str], BitMap] = {}  # by shard and reason
        self._progress = Progress()
        self._failure: LiserError | None = None
        self._broken: set[Part] = set()

    def verdicts(self, clips: Sequence[Clip]) -> dict[Clip, str]:
        """Of these clips, the reasons of those that were rejected before: each is tried once."""
        return {
            (shard, index): reason
            for shard, index in clips
            for reason in Reason
            if index in self._rejected.get((shard, reason), ())
        }

    def reject(self, verdicts: dict[Clip, str]) -> None:
        for (shard, index), reason in verdicts.items():
            self._rejected.setdefault((shard, reason), BitMap()).add(index)

    def begin(self, verdicts: Iterable[tuple[str, str, BitMap]]) -> None:
        """Workers begin, from a checkpoint with these: shard, reason and clips."""
        self._failure = None
        for shard, reason, clips in verdicts:
            self._rejected[shard, reason] = self._rejected.get((shard, reason), BitMap()) | clips

    def set_progress(self, progress: Progress) -> None:
        self._progress = progress

    def progress(self) -> Progress:
        return self._progress

    def fail(self, error: LiserError) -> None:
        """What the user has to mend: it ends the run, and trying again would not help."""
        self._failure = self._failure or error

    def tell_broken(self, part: Part) -> bool:
        """A part of the target store cannot be read; returns whether that is new."""
        new = part not in self._broken
        self._broken.add(part)
        return new

    def take_broken(self) -> set[Part]:
        """The broken parts, which are now taught again."""
        taken, self._broken = self._broken, set()
        return taken

    def failure(self) -> LiserError | None:
        return self._failure
