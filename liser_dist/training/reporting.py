"""Reports the progress of a run, from the first train worker.

It goes to TensorBoard, to Prometheus, and to the run's coordinator actor, which the console asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from liser_dist.cluster.prometheus import set_gauges
from liser_dist.runs.progress import Progress
from liser_dist.students.learner import StepResult
from liser_dist.students.scoring import Scores
from liser_dist.students.variants import Variant
from liser_dist.training.tensorboard import TensorBoardWriter
from liser_dist.training.timing import Every

PROGRESS_EVERY_S = 1.0


class ProgressReporter:
    """Reports steps, scores and progress. Only the worker with rank 0 has one."""

    def __init__(self, run: str, coordinator: Any, variants: Sequence[Variant]) -> None:
        """Create a reporter.

        Args:
            run: The folder of the run.
            coordinator: The run's coordinator actor, which the console asks for the progress.
            variants: The students, in the order of their losses.
        """
        self._coordinator, self._variants = coordinator, variants
        self._curves = TensorBoardWriter(run)
        self._progress = Every(PROGRESS_EVERY_S, at_once=True)

    def report_scores(self, scores: Mapping[str, Scores], step: int) -> None:
        """Add the validation scores of each kind of student to the curves."""
        for kind, of_kind in scores.items():
            self._curves.add(f"validation/{kind}_uar", of_kind.uar, step)

    def report_step(self, result: StepResult, progress: Progress) -> None:
        """Add a step to the curves; report the progress once a second, and at the end."""
        for position, variant in enumerate(self._variants):
            name = f"train/{variant.kind}_{variant.learning_rate:g}_loss"
            self._curves.add(name, float(result.loss[position]), progress.steps)
        for name, share in result.agreement.items():
            self._curves.add(f"train/agrees_with_{name}", share, progress.steps)
        done = progress.passes >= progress.total_passes and not progress.total_is_estimate
        if self._progress.due() or done:
            set_gauges(progress.numbers)
            self._coordinator.set_progress.remote(progress)

    def upload(self) -> None:
        """Copy the curves to the folder of the run."""
        self._curves.upload()
