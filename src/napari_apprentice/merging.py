"""How a new answer and the one before it become one: laid over it, held at the clicks, and local where the click was late.

Outside of what was looked at the previous answer stays, so that parts of a large object never vanish.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from napari_apprentice.geometry import intersection, relative_to, union
from napari_apprentice.shapes import bounding_box
from napari_apprentice.types import Box, Click, Prediction
from napari_apprentice.windows import cut

__all__ = ["HELD_LOGIT", "changed_near", "extent_of_change", "laid_over", "obeys", "probability_in_window", "without_piece"]

HELD_LOGIT = 0.1
"""Where the network does not obey a click, the answer is held there at plus or minus this."""

_NOWHERE_LOGIT = -20.0
"""What is said where nothing was."""


def laid_over(
    previous: Prediction | None,
    logits: npt.NDArray[np.float32],
    box: Box,
    shape: tuple[int, int],
    view: Box,
    score: float,
    clicks: Sequence[Click],
) -> Prediction:
    """New logits over the previous ones; every clicked pixel says what the user said.

    Parameters
    ----------
    previous : the answer so far, if there is one
    logits, box : (h, w) new logits, which are written to, and where they lie
    shape : (H, W) of the slice
    view, score : of the new answer, see `Prediction`
    clicks : all of them, newest last
    """
    given, familiar = (previous.given, previous.familiar) if previous is not None else (False, True)
    if previous is not None and previous.mask_in_box.any():
        previous = _trimmed(previous)
        whole = union(box, previous.box)
        if whole != box:
            canvas = np.full(whole.shape, _NOWHERE_LOGIT, dtype=np.float32)
            canvas[relative_to(previous.box, whole).slices] = previous.logits
            canvas[relative_to(box, whole).slices] = logits
            logits, box = canvas, whole
    for click in clicks:
        row, col = click.voxel[0] - box.top, click.voxel[1] - box.left
        if click.box is None and 0 <= row < logits.shape[0] and 0 <= col < logits.shape[1]:
            logits[row, col] = max(logits[row, col], HELD_LOGIT) if click.positive else min(logits[row, col], -HELD_LOGIT)
    return Prediction(logits, box, shape, view, score, given=given, familiar=familiar)


def obeys(prediction: Prediction, click: Click) -> bool:
    """Whether the network itself says there what the user said, without being held to it."""
    row, col = click.voxel[0] - prediction.box.top, click.voxel[1] - prediction.box.left
    inside = 0 <= row < prediction.logits.shape[0] and 0 <= col < prediction.logits.shape[1]
    said = float(prediction.logits[row, col]) if inside else _NOWHERE_LOGIT
    return bool((said if click.positive else -said) > np.float32(HELD_LOGIT))


def changed_near(new: Prediction, old: Prediction, click: Click, reach: float) -> Prediction:
    """``new`` where its mask changes in one piece with the click, or within ``reach`` times the root of the old area; else as it was.

    A late correction is about one place, and what was finished elsewhere stays so: the progressive merge of FocalClick (Chen et al., 2022).
    """
    before = np.full(new.logits.shape, _NOWHERE_LOGIT, dtype=np.float32)
    shared = intersection(new.box, old.box)
    if not old.mask_in_box.any() or 0 in shared.shape:
        return new
    before[relative_to(shared, new.box).slices] = old.logits[relative_to(shared, old.box).slices]
    pieces, count = _pieces_of_change(before > 0, new)
    rows, cols = np.ogrid[new.box.top : new.box.bottom, new.box.left : new.box.right]
    distance = np.hypot(rows - click.voxel[0], cols - click.voxel[1])
    nearest = ndimage.minimum(distance, pieces, np.arange(1, count + 1))
    stays = np.concatenate([[False], nearest > reach * float((before > 0).sum()) ** 0.5])
    return replace(new, logits=np.where(stays[pieces], before, new.logits))


def without_piece(old: Prediction, click: Click) -> Prediction:
    """``old`` without the connected piece of its mask that was clicked in."""
    pieces, _ = ndimage.label(old.mask_in_box, structure=np.ones((3, 3)))
    piece = pieces == pieces[click.voxel[0] - old.box.top, click.voxel[1] - old.box.left]
    return replace(old, logits=np.where(piece, _NOWHERE_LOGIT, old.logits).astype(np.float32), candidates=(), rank=0)


def extent_of_change(new: Prediction, old: Prediction, click: Click) -> Box:
    """The box of what changed in one piece with the click, or nearest to it; an empty one where nothing changed."""
    before = np.zeros(new.logits.shape, dtype=bool)
    box, shared = new.box, intersection(new.box, old.box)
    before[relative_to(shared, box).slices] = old.mask_in_box[relative_to(shared, old.box).slices]
    pieces, count = _pieces_of_change(before, new)
    if not count:
        return Box(click.voxel[0], click.voxel[1], click.voxel[0], click.voxel[1])
    rows, cols = np.nonzero(pieces)
    nearest = np.argmin(np.hypot(rows + box.top - click.voxel[0], cols + box.left - click.voxel[1]))
    down, right = ndimage.find_objects(pieces)[pieces[rows[nearest], cols[nearest]] - 1]
    return Box(box.top + down.start, box.left + right.start, box.top + down.stop, box.left + right.stop)


def probability_in_window(prediction: Prediction, window: Box, size: int) -> Tensor:
    """(1, 1, size, size) probability as the window shows it, 0 outside what the prediction covers."""
    if 0 in intersection(window, prediction.box).shape:
        return torch.zeros(1, 1, size, size)
    part = relative_to(window, prediction.box)
    return torch.sigmoid(cut(prediction.logits[None], part, size, fill=_NOWHERE_LOGIT))[None]


def _pieces_of_change(before: npt.NDArray[np.bool_], new: Prediction) -> tuple[npt.NDArray[np.int32], int]:
    """The 8-connected pieces in which the mask differs from ``before`` (h, w), numbered from 1, and how many they are."""
    pieces, count = ndimage.label(before != new.mask_in_box, structure=np.ones((3, 3)))
    return pieces, count


def _trimmed(prediction: Prediction) -> Prediction:
    """The same masks in the smallest box that holds the foreground."""
    inner, (top, left, _, _) = bounding_box(prediction.mask_in_box), prediction.box
    box = Box(top + inner.top, left + inner.left, top + inner.bottom, left + inner.right)
    return replace(prediction, logits=prediction.logits[inner.slices], box=box)
