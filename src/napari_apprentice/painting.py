"""How an answer of the model becomes labels: pure functions.

- An answer repaints its own plane only: the voxels that the earlier answer there painted are cleared, then the new mask is laid
  wherever the labels are 0 or the open object's.
- What else there is of the open object stays: what the user painted by hand, and the lines in which answers in crossing planes cut
  this one. A negative click on the object is about the whole connected piece that it hits, though (pixels that touch at a
  corner are), wherever that came from.
- The first answer in a plane replaces all that was there of the object before (of one selected, or begun by hand), but for those lines.
  A plane in which there is nothing else was not worked in yet: a positive click there looks for the object anew.
- Voxels of other objects are never overwritten, whether these objects are finished or not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from napari_apprentice.history import State
from napari_apprentice.labelmap import LabelMap, Patch
from napari_apprentice.shapes import deepest, signed_distance
from napari_apprentice.types import Box, Click, Plane, Prediction

__all__ = ["crossing_lines", "implied", "only_crossed", "previous_answer", "repainting"]


def previous_answer(labels: LabelMap, state: State, plane: Plane) -> Prediction | None:
    """What the model is told of its earlier work in a plane.

    The newest answer there, corrected where the labels have been painted by hand since; without an answer the voxels of the open object
    themselves; None where it has none.
    """
    here = labels.plane(plane)
    mask = here == state.label
    answer = state.predictions.get(plane)
    if answer is None:
        carried = plane in state.origin(state.label).carried
        return replace(_outlined(mask) if carried else Prediction.from_mask(mask), given=True) if mask.any() else None
    by_hand = (answer.mask != mask) & ((here == 0) | mask)
    if not by_hand.any():
        return answer
    corrected = Prediction.from_mask(mask)
    logits, box = corrected.logits.copy(), answer.box.slices
    logits[box] = np.where(by_hand[box], logits[box], answer.logits)
    return replace(corrected, logits=logits, view=answer.view, score=answer.score, given=answer.given, familiar=answer.familiar)


def only_crossed(labels: LabelMap, state: State, plane: Plane) -> bool:
    """Whether nobody put the open object into a plane: all there is of it are the lines in which its planes across other axes cut that."""
    mask = labels.plane(plane) == state.label
    return bool(mask.any()) and _only_lines(mask, state, plane)


def _only_lines(mask: npt.NDArray[np.bool_], state: State, plane: Plane) -> bool:
    """As `only_crossed`, for the open object in its plane; True of an empty one."""
    origin = state.origin(state.label)
    if plane in origin.own or plane in origin.carried:
        return False
    rest = mask.copy()
    for line in crossing_lines((*state.predictions, *origin.own), plane):
        rest[line] = False
    return not rest.any()


def _outlined(mask: npt.NDArray[np.bool_]) -> Prediction:
    """A prediction that says ``mask``, which somebody else guessed: less certain the nearer to the contour."""
    depth = 10 * signed_distance(mask) / float(np.sqrt(mask.sum()))
    return Prediction(np.asarray(np.clip(depth, -6, 6), np.float32), Box(0, 0, *mask.shape), mask.shape)


def implied(clicks: tuple[Click, ...], previous: Prediction | None) -> tuple[Click, ...]:
    """``clicks`` after a positive one in the middle of the previous mask, where all of them are negative and none lies near it.

    A network has never seen an object that is only said to be elsewhere.
    """
    if previous is None or any(click.positive for click in clicks) or not previous.mask_in_box.any():
        return clicks
    mask = previous.mask
    middle = deepest(mask)
    if min(math.dist(middle, click.voxel) for click in clicks) <= float(signed_distance(mask)[middle]) / 2:
        return clicks
    return (Click(middle), *clicks)


def repainting(labels: LabelMap, state: State, click: Click, answer: Prediction) -> Patch | None:
    """The change of the labels that the answer to ``click`` makes; ``state`` is the one before it."""
    here = labels.plane(click.plane)
    new = here.astype(np.result_type(here, np.min_scalar_type(state.label)))
    new[_replaceable(here == state.label, state, click)] = 0
    inside = new[answer.box.slices]
    inside[answer.mask_in_box & (inside == 0)] = state.label
    return labels.plane_patch(click.plane, new)


def _replaceable(mask: npt.NDArray[np.bool_], state: State, click: Click) -> npt.NDArray[np.bool_]:
    """What the answer to ``click`` replaces of ``mask``, the open object in its plane."""
    earlier = state.predictions.get(click.plane)
    if earlier is not None:
        own = mask & earlier.mask
    elif _only_lines(mask, state, click.plane):
        own = np.zeros_like(mask)
    else:
        own = mask.copy()
        for line in crossing_lines(state.predictions, click.plane):
            own[line] = False
    if not click.positive and mask[click.in_plane.voxel]:
        pieces, _ = ndimage.label(mask, structure=np.ones((3, 3)))
        own |= pieces == pieces[click.in_plane.voxel]
    return own


def crossing_lines(planes: Iterable[Plane], plane: Plane) -> Iterator[tuple[Any, ...]]:
    """Where ``planes`` across other axes cut ``plane``, as indices into its (H, W) array."""
    for other in planes:
        if other.axis != plane.axis:
            first_axis_left = 1 if plane.axis == 0 else 0
            yield (other.index,) if other.axis == first_axis_left else (slice(None), other.index)
