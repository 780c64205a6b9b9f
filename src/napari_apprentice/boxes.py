"""A box that the user drew around an object, in what networks for clicks understand: a mask to correct, and clicks on what lies beside it.

The ellipse in the box is the mask. A network that corrects masks from elsewhere finds the border from there, and needs no other training;
yet it believes what it is given. So it is also asked with nothing given but a click in the middle, and the mean of both is the answer
(`segmenter.NetworkSegmenter`; measured in ``docs/decisions/0022``). What a box says is in the answer to it, and later answers go on from
that; the clicks beside the box stay until clicks are late (`zoom.ZoomConfig`), so that a box drawn carelessly does no harm for good.
"""

from __future__ import annotations

import numpy as np

from napari_apprentice.types import Box, Click, Prediction

__all__ = ["beside", "inscribed"]

_SURE = 1.0  # logit of the ellipse and, negative, of what is around it
_AWAY = 0.06  # of the longer side


def inscribed(box: Box, shape: tuple[int, int], *, familiar: bool = True) -> Prediction:
    """The ellipse in a box of a slice of ``shape`` (H, W).

    ``familiar`` : see `Prediction`
    """
    height, width = box.shape
    rows = (np.arange(-1, height + 1) - (height - 1) / 2) / (height / 2)
    cols = (np.arange(-1, width + 1) - (width - 1) / 2) / (width / 2)
    logits = np.where(rows[:, None] ** 2 + cols[None, :] ** 2 <= 1, _SURE, -_SURE).astype(np.float32)
    around = Box(max(box.top - 1, 0), max(box.left - 1, 0), min(box.bottom + 1, shape[0]), min(box.right + 1, shape[1]))
    top, left = around.top - box.top + 1, around.left - box.left + 1
    part = logits[top : top + around.shape[0], left : left + around.shape[1]]
    return Prediction(part, around, shape, familiar=familiar)


def beside(box: Box, shape: tuple[int, int]) -> tuple[Click, ...]:
    """Negative clicks beyond the middle of every side of a box, as far as they lie in a slice of ``shape`` (H, W)."""
    away = max(round(_AWAY * max(box.shape)), 1)
    row, col = (box.top + box.bottom - 1) // 2, (box.left + box.right - 1) // 2
    places = ((box.top - 1 - away, col), (box.bottom + away, col), (row, box.left - 1 - away), (row, box.right + away))
    return tuple(Click(place, False) for place in places if 0 <= place[0] < shape[0] and 0 <= place[1] < shape[1])
