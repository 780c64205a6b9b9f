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
    """Estimates the IoU of masks from what a network has seen inside and outside of each, and from how sure each is.

    Its name in a network begins with ``to_iou``. All that comes in is detached: judging must not change what is judged.

    Parameters
    ----------
    width : channels of the features
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.judge = nn.Sequential(nn.Linear(3 * width + 4, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        """(B, M) logits of the IoU of each of ``logits`` (B, M, h, w), from ``features`` (B, width, h', w') of any resolution."""
        seen, probability = features.detach().flatten(2), torch.sigmoid(logits.detach())
        count = logits.shape[1]
        inside = F.interpolate(probability, size=features.shape[-2:], mode="area").flatten(2)  # (B, M, h'·w') shares of every pixel
        within, beyond = ((share @ seen.mT) / share.sum(2, keepdim=True).clamp_min(1.0) for share in (inside, 1 - inside))  # (B, M, width)
        flat = probability.flatten(2)
        share = (flat > 0.5).float().mean(2)
        sure = (flat * (flat > 0.5)).mean(2)
        doubt = torch.minimum(flat, 1 - flat).mean(2)
        facts = torch.stack([share, sure / (share + 1e-3), (doubt / (share + 1e-2)).clamp(max=4.0), sure / (flat.mean(2) + 1e-3)], dim=2)
        whole = seen.mean(2)[:, None].expand(-1, count, -1)
        return self.judge(torch.cat([whole, within, beyond, facts], dim=2)).squeeze(2)  # type: ignore[no-any-return]
