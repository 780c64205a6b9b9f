"""What every network says, and what networks have in common. See the package for the rest of the interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_apprentice.guidance import WindowClick

__all__ = ["CLICKED_PX", "IoUHead", "Output", "clicks_at"]

CLICKED_PX = 0.75
"""A pixel nearer than this to a click is the clicked one: the nearest centre is at most half a diagonal away."""


class Output(NamedTuple):
    """The answer to one set of clicks per image.

    Attributes
    ----------
    logits : (B, 1, h, w) of the foreground: the best single mask
    iou_logits : (B,) of its estimated IoU
    candidates : (B, M, h, w) logits of several masks, where the network proposes them
    scores : (B, M) of these, larger is better; ranked or not
    details : what the network's own ``loss`` needs beside them, by name; only in training mode
    candidate_iou_logits : (B, M) of the estimated IoU of each candidate, where the network estimates it
    """

    logits: Tensor
    iou_logits: Tensor
    candidates: Tensor | None = None
    scores: Tensor | None = None
    details: Mapping[str, Tensor] | None = None
    candidate_iou_logits: Tensor | None = None


def clicks_at(clicked: Tensor) -> list[list[WindowClick]]:
    """The clicks of every image, for losses that ask for them, from (B, 2, h, w) bool: pixels with a positive, with a negative click."""
    clicks: list[list[WindowClick]] = [[] for _ in clicked]
    for image, sign, row, col in clicked.nonzero().tolist():
        clicks[image].append(WindowClick(float(row), float(col), sign == 0))
    return clicks


class IoUHead(nn.Module):
    """Estimates the IoU of a mask from what a network has seen inside and outside of it, and from how sure the mask is.

    Its name in a network begins with ``to_iou``. All that comes in is detached: judging must not change what is judged.

    Parameters
    ----------
    width : channels of the features
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.judge = nn.Sequential(nn.Linear(3 * width + 4, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        """(B,) logits of the IoU of ``logits`` (B, 1, h, w), from ``features`` (B, width, h', w') of any resolution."""
        features, probability = features.detach(), torch.sigmoid(logits.detach())
        inside_share = F.interpolate(probability, size=features.shape[-2:], mode="area")
        inside = (features * inside_share).sum((2, 3)) / inside_share.sum((2, 3)).clamp_min(1.0)
        outside = (features * (1 - inside_share)).sum((2, 3)) / (1 - inside_share).sum((2, 3)).clamp_min(1.0)
        flat = probability.flatten(1)
        share = (flat > 0.5).float().mean(1)
        sure = (flat * (flat > 0.5)).mean(1)
        doubt = torch.minimum(flat, 1 - flat).mean(1)
        facts = torch.stack([share, sure / (share + 1e-3), (doubt / (share + 1e-2)).clamp(max=4.0), sure / (flat.mean(1) + 1e-3)], dim=1)
        pooled = torch.cat([features.mean((2, 3)), inside, outside, facts], dim=1)
        return self.judge(pooled).squeeze(1)  # type: ignore[no-any-return]
