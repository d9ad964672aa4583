"""Chooses which time window of a clip is decoded.

The choice depends only on the run, the epoch and the clip's key, so that teachers and student get
the same window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from liser_dist.config.stream import StreamSpec
from liser_dist.records import CENTRE_SHARE, Provenance, stable_hash


@dataclass(frozen=True, slots=True)
class Windows:
    """The rule that places the window in a longer clip.

    With a target store there are few windows, epochs use them in turn, and the seed has no part in
    their place: other runs read the same targets.
    """

    how: Literal["random", "even", "centred"]
    count: int
    seed: int | None  # None: the same windows for all runs

    @classmethod
    def of(cls, stream: StreamSpec, *, centred: bool) -> Windows:
        """Return the rule for a stream.

        Args:
            stream: The stream that decodes the clips.
            centred: Use the window in the middle of each clip, as for labelled clips.
        """
        how = "centred" if centred else stream.clip.windows
        return cls(how, stream.windows, None if stream.has_store else stream.seed)

    def start_share(self, clip: Provenance) -> float:
        """Return where the window starts: 0 at the clip's start, 1 at its latest start."""
        window = clip.epoch % self.count
        match self.how:
            case "centred":
                return CENTRE_SHARE
            case "even":
                return (window + 0.5) / self.count
            case "random":
                seed = "" if self.seed is None else f"{self.seed}/"
                return stable_hash(f"{seed}{window}/{clip.key}") / 2**64
