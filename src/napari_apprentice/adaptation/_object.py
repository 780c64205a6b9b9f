"""What is learnt for the object at hand alone: kept apart by `Knowledge.before_object`, and thrown away when the object is finished."""

from __future__ import annotations

from dataclasses import replace

from napari_apprentice.knowledge import Knowledge, Tensors
from napari_apprentice.segmenter import NetworkSegmenter
from napari_apprentice.types import Prompt

__all__ = ["after_object", "begins_object", "for_this_object"]


def begins_object(prompt: Prompt) -> bool:
    """Whether the newest click is the first one of an object in its slice, alone or with one that it implies on a mask that was given."""
    return len(prompt.clicks) == 1 or (prompt.previous is not None and prompt.previous.view is None)


def for_this_object(segmenter: NetworkSegmenter, *, afresh: bool = False) -> Knowledge:
    """From now on what is learnt is for this object, if it is not already; what was known before.

    Parameters
    ----------
    afresh : the optimiser knows nothing of earlier steps
    """
    known = segmenter.snapshot()
    if known.before_object is not None:
        return known.before_object
    begun = replace(known, first=Tensors(), second=Tensors(), steps=0) if afresh else known
    segmenter.restore(replace(begun, before_object=known))
    return known


def after_object(segmenter: NetworkSegmenter) -> None:
    """Throw away what was learnt for the object at hand: back, bit for bit, to what was known when it began."""
    if (before := segmenter.snapshot().before_object) is not None:
        segmenter.restore(before)
