"""A student that proves the accounting: a weight for each clip of each epoch, which is how often it
was trained.

Plain SGD at a rate of 1 and a gradient of -1 where the clip is in the batch, through the same
batches, workers, reductions and checkpoints as any student.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from liser_dist.batches import NO_NUMBER, StudentBatch
from liser_dist.evaluation import LabelledSet, Scores
from liser_dist.learning import DISTILLED, Learner, Step

COUNTS = "counts"


class Counts(nn.Module):
    """counts [passes], epoch by epoch: in float32 exact up to 16 million."""

    def __init__(self, passes: int) -> None:
        super().__init__()
        self.counts = nn.Parameter(torch.zeros(passes))

    def forward(self, numbers: Tensor) -> Tensor:
        return self.counts[numbers].sum()


class CountingLearner(Learner):
    """Learns nothing, and forgets nothing."""

    def __init__(self, passes: int, *arguments: Any) -> None:
        self.passes = passes
        super().__init__(*arguments)

    def _new_module(self, embeddings: Mapping[str, int]) -> nn.Module:
        return Counts(self.passes)

    def _new_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.module.parameters(), lr=1.0)

    def learn(self, batch: StudentBatch, progress: float) -> Step:
        numbers = batch.clip[batch.clip != NO_NUMBER].to(self.device)
        loss = -self.parallel(numbers)
        self.optimizer.zero_grad(set_to_none=True)
        (loss * self.workers).backward()  # DDP takes the mean over workers
        self.optimizer.step()
        self.steps += 1
        (total,) = self._over_all_workers(loss.detach()[None])
        return Step(total.cpu())

    def newest(self) -> dict[str, dict[str, Tensor]]:
        return {DISTILLED: self.tensors()}

    def keep_best(self, validation: LabelledSet | None) -> dict[str, Scores]:
        self.best[DISTILLED] = self.tensors()
        self.best_rates[DISTILLED] = 1.0
        return {}
