"""Other masks for the same clicks: those that a network proposes beside its answer, and what was said at other scales."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from napari_apprentice.geometry import clip, intersection, relative_to
from napari_apprentice.merging import laid_over, obeys
from napari_apprentice.scales import stability
from napari_apprentice.shapes import bounding_box
from napari_apprentice.types import Box, Click, Prediction
from napari_apprentice.windows import paste_part

__all__ = ["OTHER_SCALE_IOU", "Proposal", "distinct", "of_scale", "outdoes"]

OTHER_SCALE_IOU = 0.8
"""Masks of two scales that are more alike than this say the same."""
_LARGEST_OTHER_PX = 1 << 21
"""No mask of another scale is offered that would take longer to paste than a click should."""
_OF_THE_OLD = 0.8
"""A larger object holds at least this share of what was found before."""


class Proposal(NamedTuple):
    """A mask that was proposed, how likely it is meant in comparison with others, and whether there is anything in it."""

    chance: float
    prediction: Prediction
    full: bool


def of_scale(chance: float, word: Tensor, window: Box, score: float, shape: tuple[int, int], clicks: Sequence[Click]) -> Proposal | None:
    """What was said of a window (n, n) as a proposal, in the box of its mask alone; None if that is not in the slice, or far too large."""
    mask = (word > 0).cpu().numpy()
    if not mask.any():
        return None
    found, scale = bounding_box(mask), (window.bottom - window.top) / word.shape[-1]
    about = Box(
        math.floor(window.top + (found.top - 1) * scale),
        math.floor(window.left + (found.left - 1) * scale),
        math.ceil(window.top + (found.bottom + 1) * scale),
        math.ceil(window.left + (found.right + 1) * scale),
    )
    part = clip(intersection(about, window), shape)
    if not 0 < part.shape[0] * part.shape[1] <= _LARGEST_OTHER_PX:
        return None
    return Proposal(chance, laid_over(None, paste_part(word, window, part), part, shape, window, score, clicks), True)


def outdoes(new: Prediction, old: Prediction, previous: Prediction, clicks: Sequence[Click], times: float) -> bool:
    """Whether what was looked for at other scales is to be believed instead of what carries on with the mask so far.

    Parameters
    ----------
    new, old : the answers to ``clicks``, looked for anew and carried on
    previous : the answer so far, which is a part of the object
    times : so many times the estimated IoU of ``old``, times the square of its stability, has that of ``new`` to be
    """
    if _shared(new, previous) < _OF_THE_OLD * int(previous.mask_in_box.sum()) or not all(obeys(new, click) for click in clicks):
        return False
    believed, other = (one.score * stability(one.logits) ** 2 for one in (new, old))
    return believed >= times * other


def distinct(answer: Prediction, proposals: Sequence[Proposal], most: int, same_iou: float = 0.95) -> tuple[Prediction, ...]:
    """At most ``most`` proposals, the likeliest first, that are not empty and differ from the answer and from each other."""
    kept: list[Prediction] = []
    for proposal in sorted(proposals, key=lambda p: -p.chance):
        found = proposal.prediction
        if proposal.full and len(kept) < most and all(_iou(found, other) < same_iou for other in (answer, *kept)):
            kept.append(found)
    return tuple(kept)


def _iou(a: Prediction, b: Prediction) -> float:
    """IoU of the masks of two predictions of a slice."""
    both = _shared(a, b)
    return both / max(int(a.mask_in_box.sum()) + int(b.mask_in_box.sum()) - both, 1)


def _shared(a: Prediction, b: Prediction) -> int:
    """Pixels that are in both masks."""
    shared = intersection(a.box, b.box)
    return int((a.mask_in_box[relative_to(shared, a.box).slices] & b.mask_in_box[relative_to(shared, b.box).slices]).sum())
