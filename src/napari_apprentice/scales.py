"""How far each of the looks at several scales can be believed, from the whole slice down to a small window: the scale of what is meant.

A network sees an object well only at about the right scale, and its own estimate of the IoU does not tell enough. Here that estimate is
multiplied by what the mask itself tells; `docs/decisions/0003` has what this gained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from napari_apprentice.types import Box
from napari_apprentice.windows import seen_through

__all__ = ["credibilities", "stability"]


def credibilities(
    logits: Tensor,
    ious: Tensor,
    windows: Sequence[Box],
    shape: tuple[int, int],
    *,
    stability_power: float = 1.0,
    extent_log: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> list[float]:
    """How credible each look is; higher is better.

    Parameters
    ----------
    logits : (V, n, n) what the network said of each window
    ious : (V,) its own estimates of the IoU with the truth, 0..1
    windows : V of them, from wide to narrow
    shape : (H, W) of the slice
    stability_power : power to which the stability of the outline counts; 0 for not at all
    extent_log : how large objects are here, see `knowledge.Knowledge`

    Returns
    -------
    V products of: the estimated IoU, the stability of the outline, whether the window frames the mask, whether the mask is as large as
    accepted objects are, and whether the next wider or narrower look agrees
    """
    agreement = _agreement(logits > 0, windows)
    return [
        float(iou)
        * stability(found) ** stability_power
        * _framing(found > 0, window, shape)
        * _usualness(found > 0, window, shape, extent_log)
        * (0.2 + 0.8 * agreed)
        for iou, found, window, agreed in zip(ious, logits, windows, agreement, strict=True)
    ]


def _agreement(masks: Tensor, windows: Sequence[Box]) -> list[float]:
    """How far each look (masks (V, n, n), from wide to narrow windows) agrees with its neighbours: the better of two IoUs, in 0..1.

    Where the scale is right, the next wider or narrower look finds the same thing; a guess that only follows the window does not.
    """
    if len(windows) == 1:
        return [1.0]
    ious = []
    for wide, narrow, seen, found in zip(windows, windows[1:], masks, masks[1:], strict=False):
        part = seen_through(seen.float(), wide, narrow) > 0.5
        ious.append(float((part & found).sum()) / max(float((part | found).sum()), 1.0))
    return [max(left, right) for left, right in zip([0.0, *ious], [*ious, 0.0], strict=True)]


def stability(logits: Tensor | npt.NDArray[np.float32]) -> float:
    """IoU of the masks at thresholds a little higher and lower than 0: how sharp the outline is. Source: Segment Anything (2023)."""
    return float((logits > 1).sum()) / max(float((logits > -1).sum()), 1.0)


def _framing(mask: Tensor, window: Box, shape: tuple[int, int]) -> float:
    """Lower for a mask that is empty, tiny at this scale, or cut off by the window where the slice goes on."""
    if not bool(mask.any()):
        return 0.01
    cut_off = [
        window.top > 0 and mask[0],
        window.left > 0 and mask[:, 0],
        window.bottom < shape[0] and mask[-1],
        window.right < shape[1] and mask[:, -1],
    ]
    touching = sum(float(side.float().mean()) for side in cut_off if isinstance(side, Tensor))
    tiny = min(1.0, float(mask.sum()) / (0.006 * mask.numel()))
    return max(1.0 - 2.5 * touching, 0.05) * (0.4 + 0.6 * tiny)


def _usualness(mask: Tensor, window: Box, shape: tuple[int, int], extent_log: tuple[float, float, float]) -> float:
    """How well the mask's extent fits the extents of accepted objects, 0..1; 1 before anything was accepted."""
    total, squares, count = extent_log
    if count < 1 or not bool(mask.any()):
        return 1.0
    extent = math.log(max(float(mask.sum()), 1.0) ** 0.5 * (window.bottom - window.top) / mask.shape[-1] / max(shape))
    mean = total / count
    spread = max(squares / count - mean**2, 0.0) + 0.6**2 + 1.0 / count**2
    return math.exp(-0.5 * (extent - mean) ** 2 / spread)
