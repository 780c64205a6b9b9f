"""Does a probability mean what it says? Reliability by bins, and the temperature that mends it (Guo et al., 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import expit

from napari_apprentice.types import InputError, Prediction

__all__ = ["Reliability", "fit_temperature", "negative_log_likelihood", "probability", "reliability", "temperature"]

Floats = npt.NDArray[np.float64]

_LOG_TEMPERATURES = (-4.0, 4.0)
_TEMPERATURES = {1: 2.20, 3: 0.84, 5: 0.71, 10: 0.63}
"""After so many clicks; of the shipped weights, fitted by ``benchmarks/calibration.py`` to held-out cases of the training sets."""


def temperature(clicks: int) -> float:
    """By what the logits of an answer to so many clicks of one slice are to be divided; 1 for a mask that no click has led to.

    What was fitted (``docs/calibration.md``), geometrically between, and beyond the last as there.
    """
    if clicks < 1:
        return 1.0
    return float(np.exp(np.interp(clicks, list(_TEMPERATURES), np.log(list(_TEMPERATURES.values())))))


def probability(prediction: Prediction, clicks: int) -> npt.NDArray[np.float32]:
    """How likely every pixel of ``prediction.box`` belongs to the object: (h, w), 0 to 1, above 0.5 where the mask is.

    Outside of the box the prediction means background for certain.

    Parameters
    ----------
    prediction : the answer
    clicks : how many it answers in its slice
    """
    return np.asarray(expit(prediction.logits / np.float32(temperature(clicks))), np.float32)


@dataclass(frozen=True, eq=False)
class Reliability:
    """Forecasts by bins of their probability; those of several images add up.

    Attributes
    ----------
    mass : (bins,) weight of the forecasts in every bin
    confidence : (bins,) sum of weight times probability
    hits : (bins,) sum of weight times what came of it
    """

    mass: Floats
    confidence: Floats
    hits: Floats

    def __add__(self, other: Reliability) -> Reliability:
        return Reliability(self.mass + other.mass, self.confidence + other.confidence, self.hits + other.hits)

    @property
    def expected_error(self) -> float:
        """The expected calibration error: mean over forecasts of |probability - frequency| of their bin; NaN without a forecast."""
        total = float(self.mass.sum())
        return float(np.abs(self.confidence - self.hits).sum()) / total if total else float("nan")


def reliability(probability: npt.NDArray[Any], outcome: npt.NDArray[Any], *, bins: int = 15, weight: float = 1.0) -> Reliability:
    """Sort forecasts into bins of equal width, of which each holds its upper end.

    Parameters
    ----------
    probability : any shape, in 0..1
    outcome : same shape, what came of it: bool, or a share in 0..1 such as an IoU
    weight : of every forecast; the inverse of their number makes images of unlike size count the same

    Raises
    ------
    InputError : the shapes differ, or a probability lies outside 0..1
    """
    if probability.shape != outcome.shape:
        raise InputError(f"probabilities of shape {probability.shape} and outcomes of shape {outcome.shape} arrived; expected equal shapes")
    chance, came = probability.ravel().astype(np.float64), outcome.ravel().astype(np.float64)
    if not ((chance >= 0) & (chance <= 1)).all():
        raise InputError(f"probabilities from {chance.min():g} to {chance.max():g} arrived; expected 0 to 1")
    index = np.maximum(np.ceil(chance * bins).astype(np.intp) - 1, 0)
    return Reliability(*(weight * _sums(index, values, bins) for values in (np.ones_like(chance), chance, came)))


def _sums(index: npt.NDArray[np.intp], values: Floats, bins: int) -> Floats:
    return np.asarray(np.bincount(index, values, minlength=bins), dtype=np.float64)


def negative_log_likelihood(logits: npt.NDArray[Any], outcome: npt.NDArray[Any], temperature: float = 1.0) -> float:
    """Mean over all pixels of -log p(outcome), with p the sigmoid of ``logits / temperature``; both of any one shape, ``outcome`` bool."""
    signed = np.where(outcome, logits, -logits.astype(np.float64)) / temperature
    return float(np.logaddexp(0.0, -signed).mean())


def fit_temperature(logits: npt.NDArray[Any], outcome: npt.NDArray[Any]) -> float:
    """The temperature T > 0 at which ``sigmoid(logits / T)`` is most likely; above 1 the logits were too sure. No mask changes by it.

    Parameters
    ----------
    logits : any shape
    outcome : same shape, bool

    Returns
    -------
    T between 0.018 and 55; the ends stand for none, as where every pixel is right already
    """

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(logits, outcome, float(np.exp(log_temperature)))

    return float(np.exp(minimize_scalar(loss, bounds=_LOG_TEMPERATURES, method="bounded", options={"xatol": 1e-4}).x))
