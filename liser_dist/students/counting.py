"""Defines a student for fault tests: it counts how often each clip is trained on.

That should be once per epoch. The student has a weight per clip and epoch: the count. Each step
adds 1 to the weights of the clips in its batch, by plain SGD with a rate of 1 and a gradient of -1.
Batches, workers, reductions and checkpoints are those of any student.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from liser_dist.config.distill import DistillSpec
from liser_dist.config.student import CountingStudent
from liser_dist.records import Provenance
from liser_dist.students.batches import StudentBatch
from liser_dist.students.collectives import sum_over_workers
from liser_dist.students.learner import Learner, StepResult
from liser_dist.students.scoring import LabelledSet, Scores
from liser_dist.students.variants import DISTILLED

COUNTS = "counts"


class Counts(nn.Module):
    """Counts of all clips [epochs * clips], epoch by epoch; float32 is exact up to 16 million."""

    def __init__(self, passes: int) -> None:
        super().__init__()
        self.counts = nn.Parameter(torch.zeros(passes))

    def forward(self, numbers: Tensor) -> Tensor:
        """Return the sum of the counts of some clips."""
        return self.counts[numbers].sum()


class CountingLearner(Learner):
    """Counts how often each clip is trained, and learns nothing else."""

    def __init__(
        self,
        spec: DistillSpec,
        known: Tensor,
        device: torch.device,
        clips_of: Mapping[str, int],
    ) -> None:
        """`clips_of`: the number of clips of each unlabelled shard, in the order of the shards."""
        *firsts, self._clips = accumulate(clips_of.values(), initial=0)
        self._first_of = dict(zip(clips_of, firsts, strict=True))
        self._passes = spec.train.epochs * self._clips
        assert isinstance(spec.student, CountingStudent)
        self._infinite_steps = spec.student.infinite_steps
        super().__init__(spec, known, {}, device)

    def _new_module(self, embeddings: Mapping[str, int]) -> nn.Module:
        return Counts(self._passes)

    def _new_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.module.parameters(), lr=1.0)

    def learn(
        self, batch: StudentBatch, progress: float, clips: Sequence[Provenance] = ()
    ) -> StepResult:
        """Add 1 to the count of each unlabelled clip of the batch."""
        numbers = torch.tensor([self._number(clip) for clip in clips], dtype=torch.long)
        loss = -self.parallel(numbers.to(self.device))
        self.optimizer.zero_grad(set_to_none=True)
        scale = math.inf if self.steps in self._infinite_steps else self.workers
        (loss * scale).backward()  # DDP takes the mean over workers
        finite = all(weight.grad.isfinite().all() for weight in self.module.parameters())
        if updated := self._begin_update(bool(finite)):
            self.optimizer.step()
        (total,) = sum_over_workers(loss.detach()[None])
        return StepResult(total.cpu(), skipped=not updated)

    def _number(self, clip: Provenance) -> int:
        """Return the number of a clip among the clips of all epochs."""
        return clip.epoch * self._clips + self._first_of[clip.shard] + clip.index

    def newest(self) -> dict[str, dict[str, Tensor]]:
        """Return the counts as the weights of the distilled student."""
        return {DISTILLED: self.tensors()}

    def keep_best(self, validation: LabelledSet | None) -> dict[str, Scores]:
        """Keep the newest counts; there is nothing to score."""
        self.best[DISTILLED] = self.tensors()
        self.best_rates[DISTILLED] = 1.0
        return {}
