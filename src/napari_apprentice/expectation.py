"""How wrong an answer is expected to be that nobody has looked at.

- A slice that propagation filled, or left empty: logistic functions of the signs that were noticed on the way. The weights were fitted to
  propagations of the training volumes by ``benchmarks/propagation_errors.py``; see ``docs/decisions/0011-propagation.md``.
- The answer to a single click: a straight line of the IoU that the network gives itself, which is far too sure there. Fitted to training
  cases; see ``docs/decisions/0018-what-runs-expect.md``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["Ending", "Signs", "expected_error", "expected_of_answer", "expected_to_go_on", "hindsight"]


class Signs(NamedTuple):
    """What speaks against a slice that was filled.

    Attributes
    ----------
    away : logarithm of one and the number of slices to the nearest accepted one
    lost : negative logarithm of what should be left of the mask after all steps, by the round trips of the flow and their lengths
    against : 1 - IoU of what the network says and the mask that the flow brought
    doubted : 1 - the IoU that the network gives itself; 0.5 where it gives none
    small : share of the mask that one pixel of its contour would make, of a disk of its area
    open : 1 where there is an accepted slice on one side alone, else 0
    apart : 1 - IoU of the masks from both sides; 0 where there is one alone
    """

    away: float
    lost: float
    against: float
    doubted: float
    small: float
    open: float = 1.0
    apart: float = 0.0

    def towards(self, other: Signs, share: float, apart: float) -> Signs:
        """Between two accepted slices, ``share`` of the way from the one that these signs belong to, to the one of the others."""
        mixed = Signs(*((1 - share) * a + share * b for a, b in zip(self, other, strict=True)))
        return mixed._replace(away=min(self.away, other.away), open=0.0, apart=apart)


_BIAS = -3.53
_WEIGHTS = Signs(away=0.91, lost=2.17, against=0.72, doubted=1.91, small=1.76, open=1.44, apart=1.00)


def expected_error(signs: Signs) -> float:
    """1 - IoU, 0 to 1."""
    return _logistic(_BIAS + sum(weight * sign for weight, sign in zip(_WEIGHTS, signs, strict=True)))


class Ending(NamedTuple):
    """What was noticed where the object seemed to be gone.

    Attributes
    ----------
    passed : slices that were filled on the way there
    shrunk : area of the mask where the way began, over that of the last slice
    doubted : 1 - the IoU that the network gives the mask that was brought there; 0.5 where it gives none
    """

    passed: int
    shrunk: float
    doubted: float


_GOING_ON = 1.80
_AGAINST = 0.33, 0.75, 6.80  # of the logarithms of 1 + passed and of shrunk, and of doubted


def expected_to_go_on(ending: Ending) -> float:
    """Probability that the object is there all the same, 0 to 1: the error that is expected of leaving the slice empty."""
    signs = math.log1p(ending.passed), math.log(ending.shrunk), ending.doubted
    return _logistic(_GOING_ON - sum(weight * sign for weight, sign in zip(_AGAINST, signs, strict=True)))


_POINTED = 0.68, 0.00  # slope and offset of the real IoU, where a person clicked once
_FOUND = 0.88, -0.38  # where an accepted case suggested the click, which may be in the wrong place


_BELIEF = 5  # answers of a study's own that weigh as much as all that is known of other images


def expected_of_answer(score: float, clicks: int, *, found: bool, better: float = 0.0) -> float:
    """1 - IoU, 0 to 1, of the answer to so many clicks, all but the first of which correct it; NaN if the network does not judge itself.

    Parameters
    ----------
    score : the IoU that the network gives itself, 0 to 1
    found : an accepted case suggested where to click; further clicks come from there, too, and correct nothing
    better : so much more right are such answers in this study, see `hindsight`
    """
    if found:
        slope, offset = _FOUND[0], _FOUND[1] + better
    else:
        slope, offset = _POINTED if clicks == 1 else (1.0, 0.0)
    return math.nan if math.isnan(score) else 1 - min(max(slope * score + offset, 0.0), 1.0)


def hindsight(answers: Iterable[tuple[float, float]]) -> float:
    """How much more right than expected a study's own answers to single suggested clicks were; the fewer there are, the nearer to 0.

    Parameters
    ----------
    answers : the IoU that the network gave itself, and the real one
    """
    surprises = [iou - 1 + expected_of_answer(score, 1, found=True) for score, iou in answers if not math.isnan(score)]
    return sum(surprises) / (len(surprises) + _BELIEF)


def _logistic(told: float) -> float:
    return 1 / (1 + math.exp(-told))
