"""Provides a teacher without a model, for tests: its targets depend on the clip's key alone."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from liser_dist.config.stream import ClipSpec
from liser_dist.config.teachers import MockTeacher, TeacherIdentity
from liser_dist.records import Clip, Targets, stable_hash
from liser_dist.teachers.model_teacher import TeacherFacts, fold, to_probabilities

_TARGETS = 1024  # number of different targets


class MockKind:
    """The kind `mock`."""

    def __init__(self, spec: MockTeacher) -> None:
        self._spec = spec

    def identify(self) -> TeacherIdentity:
        """Return an identity without weights."""
        return TeacherIdentity(kind=self._spec.kind)

    def describe(
        self, emotions: Sequence[str], clip: ClipSpec, identity: TeacherIdentity | None = None
    ) -> TeacherFacts:
        """Describe a teacher that knows all emotions."""
        return TeacherFacts((True,) * len(emotions), self._spec.embedding, tuple(emotions), "any")

    def load(
        self, emotions: Sequence[str], clip: ClipSpec, identity: TeacherIdentity | None = None
    ) -> SeededTeacher:
        """Draw its targets."""
        return SeededTeacher(self._spec, emotions)

    def weights_bytes(self) -> int:
        """Return 0: it has no weights."""
        return 0


class SeededTeacher:
    """Gives each clip one of a fixed set of targets by its key, after a fixed time."""

    def __init__(self, spec: MockTeacher, emotions: Sequence[str]) -> None:
        self.known: NDArray[np.bool_] = np.ones(len(emotions), np.bool_)
        self.embedding_dim = spec.embedding
        self._spec = spec
        self._targets = [self._draw(seed) for seed in range(_TARGETS)]

    def teach(self, clips: Sequence[Clip]) -> list[Targets]:
        """Return the targets of each clip; empty if it is rejected."""
        started_s = time.perf_counter()
        targets = [
            Targets()
            if clip.rejected
            else self._targets[stable_hash(clip.key) % len(self._targets)]
            for clip in clips
        ]
        wanted_s = self._spec.seconds_per_clip * sum(not clip.rejected for clip in clips)
        time.sleep(max(0.0, wanted_s - (time.perf_counter() - started_s)))
        return targets

    def _draw(self, seed: int) -> Targets:
        random = np.random.default_rng(seed)
        emotions = len(self.known)
        shares = to_probabilities(random.standard_normal(emotions, np.float32) * 2, 1.0)
        logits, mass = fold(shares, np.eye(emotions, dtype=np.float32))
        embedding = random.standard_normal(self.embedding_dim).astype(np.float16)
        return Targets(logits=logits, mass=mass, embedding=embedding)
