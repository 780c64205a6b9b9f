"""Losses as pure functions of logits, each naming its paper; `LOSSES` has them by name under one signature.

Shapes: ``logits`` (B, M, h, w) of M candidate masks (one, unless the loss says otherwise), ``target`` (B, 1, h, w) in {0, 1}; each returns
a scalar, the mean over the images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from napari_apprentice.guidance import WindowClick
from napari_apprentice.losses._clicks import (
    click_centred_gaussian,
    click_constraint,
    click_windows,
    diversified_training,
    hindsight,
    ranked_diversity,
)
from napari_apprentice.losses._pixels import (
    adaptive_focal,
    balanced_cross_entropy,
    cross_entropy,
    dice_focal,
    focal,
    iou_distance,
    normalised_focal,
    poly,
    soft_dice,
    soft_iou,
    weighted_cross_entropy,
)

__all__ = [
    "LOSSES",
    "OF_CANDIDATES",
    "Loss",
    "adaptive_focal",
    "balanced_cross_entropy",
    "click_centred_gaussian",
    "click_constraint",
    "click_windows",
    "cross_entropy",
    "dice_focal",
    "diversified_training",
    "focal",
    "hindsight",
    "iou_distance",
    "normalised_focal",
    "poly",
    "ranked_diversity",
    "soft_dice",
    "soft_iou",
    "weighted_cross_entropy",
]


class Loss(Protocol):
    """What a training recipe can name."""

    def __call__(self, logits: Tensor, target: Tensor, clicks: Sequence[Sequence[WindowClick]], /) -> Tensor:
        """The loss of a batch; ``clicks`` are those of each image, in window pixels."""


def _of_pixels(loss: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """A loss that does not ask where the clicks are."""
    return lambda logits, target, clicks: loss(logits, target)


def _near_clicks(logits: Tensor, target: Tensor, clicks: Sequence[Sequence[WindowClick]], /) -> Tensor:
    each = [click_centred_gaussian(z[None], t[None], c) for z, t, c in zip(logits, target, clicks, strict=True)]
    return torch.stack(each).mean()


LOSSES: Mapping[str, Loss] = {
    "bce": _of_pixels(cross_entropy),
    "weighted_bce": _of_pixels(weighted_cross_entropy),
    "balanced_ce": _of_pixels(balanced_cross_entropy),
    "soft_iou": _of_pixels(soft_iou),
    "dice": _of_pixels(soft_dice),
    "focal": _of_pixels(focal),
    "nfl": _of_pixels(normalised_focal),
    "nfl_original": _of_pixels(partial(normalised_focal, weights_learn=True)),
    "poly": _of_pixels(poly),
    "afl": _of_pixels(adaptive_focal),
    "dice_focal": _of_pixels(dice_focal),
    "ccg": _near_clicks,
    "click_constraint": lambda logits, target, clicks: click_constraint(logits, clicks),
    "hindsight": hindsight,
    "ranked_diversity": ranked_diversity,
    "diversified_training": diversified_training,
}
"""The losses by name."""

OF_CANDIDATES = frozenset({"hindsight", "ranked_diversity", "diversified_training"})
"""Those of several candidate masks; all others take one."""
