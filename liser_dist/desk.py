"""What the parts of one run tell each other beside the stream: which clips are known to be bad,
and how far the run is.

A plain class; `pipeline.open_desk` makes it an actor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the training of a run is, as its first worker sees it."""

    passes: int = 0  # clips trained or rejected, counted once an epoch
    total_passes: int = 0
    rejected: int = 0  # distinct clips
    steps: int = 0
    loss: float = float("nan")
    clips_per_s: float = 0.0
    data_wait_share: float = 0.0
    left_s: float | None = None
    scores: dict[str, float] = field(default_factory=dict)  # validation UAR of each kind


Clip = tuple[str, int]  # shard, index
Verdict = tuple[str, str]  # reason, detail


class Desk:
    def __init__(self) -> None:
        self._verdicts: dict[Clip, Verdict] = {}
        self._progress = Progress()

    def verdicts(self, clips: Sequence[Clip]) -> dict[Clip, Verdict]:
        """Of these clips, those that an earlier epoch rejected: a bad clip is tried once."""
        return {clip: self._verdicts[clip] for clip in clips if clip in self._verdicts}

    def reject(self, verdicts: dict[Clip, Verdict]) -> None:
        self._verdicts.update(verdicts)

    def set_progress(self, progress: Progress) -> None:
        self._progress = progress

    def progress(self) -> Progress:
        return self._progress
