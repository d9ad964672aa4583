"""Which clips there are, so that each lands once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from liser_dist.likeness import ALIKE_BITS, differing_bits

Fingerprint = tuple[str, str]  # digest, and likeness in hex


class Register:
    """The clips of all groups. One a job, in an actor of its own."""

    def __init__(self, how: Literal["exact", "perceptual"] | None) -> None:
        self._perceptual = how == "perceptual"
        self._groups: dict[str, str] = {}  # by digest
        self._likenesses = _parsed("")

    def learn(self, known: Iterable[tuple[str, Fingerprint]]) -> None:
        """Group and fingerprint of what was committed."""
        known = list(known)
        self._groups = {digest: group for group, (digest, _) in known}
        self._likenesses = _parsed("".join(likeness for _, (_, likeness) in known))

    def claim(self, group: str, clips: Sequence[Fingerprint]) -> list[bool]:
        """For each clip, whether it is new and this group's; asked twice, it says the same."""
        seen: set[str] = set()
        mine = []
        for digest, likeness in clips:
            if digest not in self._groups and not self._has_alike(likeness):
                self._groups[digest] = group
                if self._perceptual:
                    self._likenesses = np.concatenate([self._likenesses, _parsed(likeness)])
            mine.append(self._groups.get(digest) == group and digest not in seen)
            seen.add(digest)
        return mine

    def _has_alike(self, likeness: str) -> bool:
        if not self._perceptual:
            return False
        (parsed,) = _parsed(likeness)
        return bool((differing_bits(self._likenesses, parsed) <= ALIKE_BITS).any())


def _parsed(likenesses: str) -> NDArray[np.uint64]:
    """[n, 2] of n that follow each other."""
    return np.frombuffer(bytes.fromhex(likenesses), np.uint64).reshape(-1, 2)
