"""Heads, temperatures and confidence intervals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from liser_dist.runs.caveats import warn_not_calibrated
from liser_dist.students.bootstrap import (
    count_by_speaker,
    draw_speakers,
    percentile_interval,
    resample_uar,
)
from liser_dist.students.scoring import score
from liser_dist.teachers.calibration import (
    calibrate,
    calibration_error,
    fit_temperature,
    mean_probabilities,
)
from liser_dist.teachers.heads import fit_calibrated_head, fit_head


def test_a_head_finds_the_layer_that_tells_the_classes_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(20)
    embeddings = torch.randn(60, 4, 6, generator=generator)
    embeddings[:, 2, :3] += 4 * torch.nn.functional.one_hot(labels, 3)
    head = fit_head(embeddings, labels, 3)
    assert head.mix.argmax() == 2
    torch.testing.assert_close(head.mix.sum(), torch.tensor(1.0))
    assert (head.logits(embeddings).argmax(1) == labels).float().mean() > 0.9


def test_a_calibrated_head_is_as_sure_as_it_is_right_on_speakers_that_it_has_not_heard() -> None:
    random = np.random.default_rng(0)
    speakers = [f"s{n % 4}" for n in range(120)]
    labels = torch.from_numpy(random.integers(0, 3, 120))
    embeddings = torch.from_numpy(random.normal(size=(120, 1, 80))).float()
    embeddings[:, 0, :3] += torch.nn.functional.one_hot(labels, 3)
    head = fit_calibrated_head(embeddings, labels, speakers, 3)
    new_labels = torch.from_numpy(random.integers(0, 3, 3000))
    new = torch.from_numpy(random.normal(size=(3000, 1, 80))).float()
    new[:, 0, :3] += torch.nn.functional.one_hot(new_labels, 3)
    errors = [
        calibration_error(one.logits(new).softmax(1).numpy(), new_labels.numpy())
        for one in (fit_head(embeddings, labels, 3), head)
    ]
    assert errors[1] < errors[0]
    assert errors[1] < 0.06


def test_a_temperature_undoes_what_made_logits_too_sure() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(4000, 5)).astype(np.float32) * 2
    shares = mean_probabilities(logits, np.ones(4000, int), 1.0)
    labels = np.array([random.choice(5, p=row) for row in shares])
    assert abs(fit_temperature(3 * logits, labels) - 3) < 0.3
    assert calibration_error(shares, labels) < 0.03
    assert calibration_error(mean_probabilities(3 * logits, np.ones(4000, int), 1.0), labels) > 0.1


@pytest.mark.parametrize(("scale", "clips", "used"), [(3.0, 2000, True), (1.0, 60, False)])
def test_a_temperature_that_makes_calibration_worse_is_not_used(
    scale: float, clips: int, used: bool
) -> None:
    random = np.random.default_rng(18)
    logits = random.normal(size=(clips, 3)).astype(np.float32)
    shares = mean_probabilities(logits, np.ones(clips, int), 1.0)
    labels = np.array([random.choice(3, p=row) for row in shares])
    found = calibrate(scale * logits, labels, np.ones(clips, int))
    assert found.fitted == fit_temperature(scale * logits, labels)
    assert (found.error_fitted < found.error_before) is used
    assert found.temperature == (found.fitted if used else 1.0)
    warnings = warn_not_calibrated(found.fitted, found.error_before, found.error_fitted)
    assert bool(warnings) is not used


def test_a_clip_of_several_looks_is_their_mean() -> None:
    logits = np.log(np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]], np.float32))
    shares = mean_probabilities(logits, np.array([2, 1]), 1.0)
    np.testing.assert_allclose(shares, [[0.7, 0.3], [0.2, 0.8]], rtol=1e-5)


def test_speakers_are_drawn_and_not_clips() -> None:
    labels = np.tile([0, 1], 50)
    speakers = ["good"] * 50 + ["bad"] * 50
    found = np.where(np.arange(100) < 50, labels, 1 - labels)
    counts = count_by_speaker(labels, found, speakers, ["bad", "good"], 3)
    drawn = resample_uar(counts, draw_speakers(2, 500))
    assert set(np.round(drawn, 6)) == {0.0, 0.5, 1.0}
    assert percentile_interval(drawn) == (0.0, 1.0)
    everybody = resample_uar(counts, np.ones((1, 2)))
    assert everybody[0] == score(labels, found).uar
