"""Calibrates classifiers: fits a temperature, and measures the calibration error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import softmax

_LOWEST, _HIGHEST = 0.05, 20.0
# Prior of the temperature: 1 within a factor of about 2, so that a few lucky clips do not make a
# classifier certain, nor a few unlucky ones uncertain.
_PRIOR_SPREAD = 0.7  # standard deviation of its logarithm


@dataclass(frozen=True, slots=True)
class Calibration:
    """A temperature, and what it does to the calibration error of the clips it was fitted on.

    Attributes:
        fitted: The temperature with the highest likelihood of the labels.
        error_before: Expected calibration error with temperature 1.
        error_fitted: The same with the fitted temperature.
    """

    fitted: float
    error_before: float
    error_fitted: float

    @property
    def temperature(self) -> float:
        """The temperature to use: 1 if the fitted one would raise the calibration error.

        The fitted temperature always raises the likelihood of the clips it was fitted on, so this
        alone cannot tell that it helps.
        """
        return self.fitted if self.error_fitted <= self.error_before else 1.0


def calibrate(
    logits: NDArray[np.float32], labels: NDArray[np.int64], inputs: NDArray[np.int64]
) -> Calibration:
    """Fit a temperature, and compare the calibration error with and without it.

    Args:
        logits: [inputs, classes], those of a clip next to each other.
        labels: [clips].
        inputs: [clips] number of inputs of each clip.
    """
    fitted = fit_temperature(logits, labels, inputs)
    before, after = (
        calibration_error(mean_probabilities(logits, inputs, temperature), labels)
        for temperature in (1.0, fitted)
    )
    return Calibration(fitted, before, after)


def fit_temperature(
    logits: NDArray[np.float32], labels: NDArray[np.int64], inputs: NDArray[np.int64] | None = None
) -> float:
    """Return the temperature with the highest likelihood of the labels.

    Temperature scaling (Guo et al., "On Calibration of Modern Neural Networks", 2017, section 4.2).

    Args:
        logits: [inputs, classes], those of a clip next to each other.
        labels: [clips].
        inputs: [clips] number of inputs of each clip; one each if not given.
    """
    inputs = np.ones(len(labels), np.int64) if inputs is None else inputs

    def loss(log_temperature: float) -> float:
        shares = mean_probabilities(logits, inputs, float(np.exp(log_temperature)))
        likelihood = np.log(shares[np.arange(len(labels)), labels].clip(1e-12)).sum()
        return float((log_temperature / _PRIOR_SPREAD) ** 2 / 2 - likelihood)

    bounds = (np.log(_LOWEST), np.log(_HIGHEST))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))


def mean_probabilities(
    logits: NDArray[np.float32], inputs: NDArray[np.int64], temperature: float
) -> NDArray[np.float64]:
    """Return probabilities [clips, classes]: the mean over the inputs of each clip.

    Args:
        logits: [inputs, classes], those of a clip next to each other.
        inputs: [clips] number of inputs of each clip.
        temperature: what the logits are divided by.
    """
    shares = softmax(logits.astype(np.float64) / temperature, axis=1)
    firsts = np.cumsum(inputs) - inputs
    return np.asarray(np.add.reduceat(shares, firsts, axis=0) / inputs[:, None])


def calibration_error(
    probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64], bins: int = 15
) -> float:
    """Return the expected calibration error, 0 to 1: mean |confidence - accuracy| over bins.

    Guo et al., 2017, equation 3, with bins of confidence that have equal width.

    Args:
        probabilities: [n, classes].
        labels: [n].
        bins: number of bins.
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    of_bin = np.minimum((confidence * bins).astype(int), bins - 1)
    sums = [np.bincount(of_bin, weights=values, minlength=bins) for values in (confidence, correct)]
    return float(np.abs(sums[0] - sums[1]).sum() / len(labels))
