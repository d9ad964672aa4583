"""Is a classifier as sure as it is right? A temperature that makes it so, and how far off it is."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import softmax

_COLDEST, _HOTTEST = 0.05, 20.0
# Before anything is known, a temperature is 1 within a factor of 2 or so: a few lucky clips are no
# reason for certainty, nor a few unlucky ones for none.
_PRIOR_SPREAD = 0.7  # of its logarithm


def fit_temperature(
    logits: NDArray[np.float32], labels: NDArray[np.int64], looks: NDArray[np.int64] | None = None
) -> float:
    """What to divide logits [looks, classes] by, so that labels [clips] are likeliest.

    `looks` [clips]: how many of the logits each clip has, one after the other; one, when not given.
    Temperature scaling (Guo et al., "On Calibration of Modern Neural Networks", 2017, section 4.2).
    """
    looks = np.ones(len(labels), np.int64) if looks is None else looks

    def loss(log_temperature: float) -> float:
        shares = mean_shares(logits, looks, float(np.exp(log_temperature)))
        likelihood = np.log(shares[np.arange(len(labels)), labels].clip(1e-12)).sum()
        return float((log_temperature / _PRIOR_SPREAD) ** 2 / 2 - likelihood)

    bounds = (np.log(_COLDEST), np.log(_HOTTEST))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))


def mean_shares(
    logits: NDArray[np.float32], looks: NDArray[np.int64], temperature: float
) -> NDArray[np.float64]:
    """Logits [looks, classes] -> probabilities [clips, classes], the mean over a clip's looks."""
    shares = softmax(logits.astype(np.float64) / temperature, axis=1)
    firsts = np.cumsum(looks) - looks
    return np.asarray(np.add.reduceat(shares, firsts, axis=0) / looks[:, None])


def calibration_error(
    probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64], bins: int = 15
) -> float:
    """Expected calibration error, 0 to 1: between how sure and how right, over bins of sureness.

    `probabilities` [n, classes], `labels` [n]. Guo et al., 2017, equation 3, with bins of equal
    width.
    """
    sure = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    of_bin = np.minimum((sure * bins).astype(int), bins - 1)
    sums = [np.bincount(of_bin, weights=values, minlength=bins) for values in (sure, right)]
    return float(np.abs(sums[0] - sums[1]).sum() / len(labels))
