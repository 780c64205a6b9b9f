"""The gate: every lasting update is judged by the objects that are remembered, and by procedural ones that stand for everything else.

It is judged thrice: against the state just before it; against the best that was ever reached on each remembered object, so that losses
too small to be refused do not add up; and against the untaught model on procedural objects (`_source`).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import replace
from statistics import fmean, median

import torch

from napari_apprentice.adaptation._memory import Batch
from napari_apprentice.adaptation._plausible import contrast
from napari_apprentice.adaptation._settings import Settings
from napari_apprentice.adaptation._source import Source, mark_now
from napari_apprentice.knowledge import ENOUGH_TO_COMPARE, Knowledge, Remembered, Tensors
from napari_apprentice.segmenter import NetworkSegmenter
from napari_apprentice.types import LearningReport

__all__ = ["Mark", "Update", "found_out", "gated", "implausible", "marks_now"]

_AT_A_TIME = 3  # objects that are judged between two pauses

Mark = tuple[float, float]
"""IoU of an object, over its views, from the first click alone and from all the user's clicks."""

Update = Generator[None, None, tuple[float, float] | None]
"""Steps that change a segmenter's weights, one after the other; returns the first and the last loss, None if a step failed."""


# --- how right the model is -------------------------------------------------------------------------------------------------------------


def found_out(segmenter: NetworkSegmenter, objects: Sequence[Remembered]) -> Generator[None, None, tuple[Mark, ...]]:
    """`marks_now`, a few objects at a time."""
    marks: tuple[Mark, ...] = ()
    for first in range(0, len(objects), _AT_A_TIME):
        yield
        marks += marks_now(segmenter, objects[first : first + _AT_A_TIME])
    return marks


def marks_now(segmenter: NetworkSegmenter, objects: Sequence[Remembered]) -> tuple[Mark, ...]:
    """How right the model is about every one of some objects."""
    if not objects:
        return ()
    with torch.no_grad():
        batch = Batch(objects, segmenter.device)
        first = batch.logits(segmenter, batch.firsts)
        every = batch.logits(segmenter, batch.clicks, torch.sigmoid(first))
        return tuple(zip(batch.ious(first), batch.ious(every), strict=True))


def _means(marks: Sequence[Mark]) -> Mark:
    """Over objects; 1 where there are none."""
    return (fmean(first for first, _ in marks), fmean(every for _, every in marks)) if marks else (1.0, 1.0)


def _lost(before: Mark, after: Mark, standard: Mark) -> float:
    """How far a mark came to lie below a standard by falling; where it did not fall nothing is lost, however low it is."""
    return max(wanted - then if then < now else 0.0 for now, then, wanted in zip(before, after, standard, strict=True))


# --- what is accepted -------------------------------------------------------------------------------------------------------------------


def implausible(settings: Settings, memory: Sequence[Remembered], new: Remembered, every: float) -> str:
    """Why nothing should be learnt from a mask, in words; empty if it may.

    The model does not make it out, not even from all the user's clicks, and it does not stand out from what is next to it as remembered
    objects do: honest hard objects fail one of the two, masks in a wrong place both.

    Parameters
    ----------
    memory : the remembered objects; a few are needed to know what is usual
    every : IoU of the answer to all its clicks
    """
    if math.isinf(settings.gate_margin) or len(memory) < ENOUGH_TO_COMPARE or every >= settings.plausible:
        return ""
    if contrast(new) >= settings.standing_out * median(map(contrast, memory)):
        return ""
    return f"all clicks together give IoU {every:.2f}, and the mask does not stand out from its surroundings as remembered ones do"


def gated(
    settings: Settings, segmenter: NetworkSegmenter, new: Remembered, source: Source | None, update: Update
) -> Generator[None, None, LearningReport]:
    """Do an update unless remembered objects or procedural ones pay for it: all of it, or a quarter of the way, or nothing.

    The segmenter then knows how right it is about both kinds and the new one (`Knowledge.marks`, `source_mark`), unless a step failed.

    Parameters
    ----------
    new : the object that is learnt from
    source : procedural objects; None to judge by remembered ones alone
    update : changes the segmenter's weights
    """
    before = segmenter.snapshot()
    old = before.memory[-settings.remembered :]
    older = before.memory[: len(before.memory) - len(old)]
    marks = before.marks if len(before.marks) == len(old) else (yield from found_out(segmenter, old))
    held = before.source_mark
    yield
    if source and held is None:
        held = mark_now(segmenter, source)
        yield
    losses = yield from update
    if losses is None:
        segmenter.restore(replace(before, marks=(), source_mark=None))
        return LearningReport(False, "learning was refused: the update was not finite; the model stays as it was", refused=True)
    learnt, standard, objection = segmenter.snapshot(), _means(marks), ""
    for share in (1.0, 0.25):
        segmenter.restore(_towards(before, learnt, share))
        kept = None
        if source and held is not None:
            yield
            kept = mark_now(segmenter, source)
            if objection := _forgotten(settings, source.mark, held, kept):
                continue
        found = yield from found_out(segmenter, (*old, new))
        reached = _means(found[:-1])
        if not (objection := _objection(settings, standard, reached, _means([one.best for one in old]), len(old))):
            memory = tuple(_better(one, mark) for one, mark in zip(old, found[:-1], strict=True))
            segmenter.restore(replace(segmenter.snapshot(), memory=older + memory, marks=found, source_mark=kept))
            judged = (standard[1], reached[1]) if old else (math.nan, math.nan)
            return LearningReport(True, "learnt from this object", *losses, remembered_before=judged[0], remembered_after=judged[1])
    segmenter.restore(before)
    segmenter.restore(replace(before, marks=(*marks, *marks_now(segmenter, (new,))), source_mark=held))
    return LearningReport(False, f"learning was refused: {objection}; the model stays", refused=True)


def _objection(settings: Settings, before: Mark, after: Mark, best: Mark, number: int) -> str:
    """What speaks against an update that took remembered objects from one mean mark to another; empty if nothing does."""
    if math.isinf(settings.gate_margin):
        return ""
    if (lost := _lost(before, after, before)) > settings.gate_margin:
        return f"{number} remembered objects would have lost {100 * lost:.1f} points of IoU"
    if (lost := _lost(before, after, best)) > settings.best_margin:
        return f"{number} remembered objects would have come to lie {100 * lost:.1f} points of IoU below their best"
    return ""


def _forgotten(settings: Settings, untaught: float, before: float, after: float) -> str:
    """The same for procedural objects, which the untaught model had right by so much."""
    if math.isinf(settings.gate_margin) or after >= before or untaught - after <= settings.source_margin:
        return ""
    lost = f"{100 * (untaught - after):.1f} points"
    return f"objects that have nothing to do with this image would have come to lie {lost} below the untaught model"


def _better(one: Remembered, mark: Mark) -> Remembered:
    """The object with the best that was ever reached on it."""
    return replace(one, best=(max(one.best[0], mark[0]), max(one.best[1], mark[1])))


def _towards(before: Knowledge, learnt: Knowledge, share: float) -> Knowledge:
    """``learnt``, whose weights went that share of the way from ``before`` only."""
    if share == 1:
        return learnt
    weights = {k: v if v is before.weights[k] else torch.lerp(before.weights[k], v, share) for k, v in learnt.weights.items()}
    return replace(learnt, weights=Tensors(weights))
