"""The first worker reports progress once a second and at the end, and every step's curves."""

from pathlib import Path

import torch

from liser_dist.config.distill import LossSpec
from liser_dist.runs.curves import read_scalars
from liser_dist.runs.progress import Progress
from liser_dist.students.learner import StepResult
from liser_dist.students.scoring import Scores
from liser_dist.students.variants import variants_of
from liser_dist.training.reporting import ProgressReporter


class Method:
    """A method of an actor."""

    def __init__(self) -> None:
        self.calls: list[Progress] = []

    def remote(self, progress: Progress) -> None:
        self.calls.append(progress)


class Coordinator:
    """The run's coordinator, without Ray."""

    def __init__(self) -> None:
        self.set_progress = Method()


def test_steps_and_scores_are_reported(tmp_path: Path) -> None:
    coordinator = Coordinator()
    variants = variants_of(LossSpec(), ["labels_only"], [0.5])
    reporter = ProgressReporter(str(tmp_path), coordinator, variants)
    for passes in (1, 2, 3):
        result = StepResult(torch.tensor([passes, 9.0]), {"speech": 0.25})
        reporter.report_step(result, Progress(passes=passes, total_passes=3, steps=passes))
    reporter.report_scores({"distilled": Scores(0.5, 0.5, 0.5, 4)}, step=3)
    reporter.upload()
    assert [progress.passes for progress in coordinator.set_progress.calls] == [1, 3]
    curves = {name: points[:, 1:] for name, points in read_scalars(str(tmp_path)).items()}
    assert curves["train/distilled_0.5_loss"].tolist() == [[1, 1], [2, 2], [3, 3]]
    assert curves["train/labels_only_0.5_loss"][:, 1].tolist() == [9, 9, 9]
    assert curves["train/agrees_with_speech"][-1].tolist() == [3, 0.25]
    assert curves["validation/distilled_uar"].tolist() == [[3, 0.5]]
