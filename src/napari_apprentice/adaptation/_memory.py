"""Accepted objects that are remembered: what they look like to the network, and the gate that judges every lasting update by them."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import replace
from itertools import takewhile
from statistics import fmean

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from napari_apprentice.adaptation._settings import Settings
from napari_apprentice.adaptation._targets import mask_in_window
from napari_apprentice.guidance import WindowClick
from napari_apprentice.knowledge import Knowledge, Remembered, Tensors
from napari_apprentice.segmenter import NetworkSegmenter
from napari_apprentice.shapes import bounding_box, deepest
from napari_apprentice.types import Box, Click, LearningReport, Lesson, Prediction, Prompt

__all__ = ["Batch", "Update", "answered", "doubted", "gated", "lesson_windows", "remember", "told", "with_extent"]

_AT_A_TIME = 3  # objects that are judged between two pauses

Update = Generator[None, None, tuple[float, float] | None]
"""Steps that change a segmenter's weights, one after the other; returns the first and the last loss, None if a step failed."""


# --- to remember ------------------------------------------------------------------------------------------------------------------------


def remember(segmenter: NetworkSegmenter, lesson: Lesson, size: int) -> Remembered:
    """The views of an accepted object that the model should get right from one click on."""
    clicks = told(lesson)
    windows = lesson_windows(segmenter, lesson.mask, clicks)
    views = [segmenter.look(lesson.image_slice, Prompt(clicks), window, size) for window in windows]
    targets = torch.cat([mask_in_window(lesson.mask, window, size) for window in windows])
    return Remembered(torch.cat([v.image for v in views]).half().cpu(), targets > 0.5, tuple(v.clicks for v in views))


def lesson_windows(segmenter: NetworkSegmenter, mask: npt.NDArray[np.bool_], clicks: Sequence[Click]) -> tuple[Box, Box]:
    """The first window that shows the object best, and the zoomed one."""
    anchor = next((c for c in clicks if c.positive), clicks[0])
    shape = (int(mask.shape[0]), int(mask.shape[1]))
    box = bounding_box(mask)
    found = Prediction(np.where(mask[box.slices], 1, -1).astype(np.float32), box, shape)
    zoomed = segmenter.zoom.grown_window(Prompt((anchor,), found), shape)
    windows = segmenter.zoom.first_windows(anchor, shape)
    return min(windows, key=lambda w: abs(math.log((w.bottom - w.top) / (1.6 * (zoomed.bottom - zoomed.top))))), zoomed


def told(lesson: Lesson) -> tuple[Click, ...]:
    """The clicks of a lesson; where no positive one stands, after one in the middle of the mask.

    A mask that was painted may have no clicks, and one that was only made smaller negative ones alone: they do not say what it is.
    """
    if any({c.voxel: c.positive for c in lesson.clicks}.values()):
        return lesson.clicks
    middle = Click(deepest(lesson.mask))
    return (middle, *(c for c in lesson.clicks if c.voxel != middle.voxel))


def with_extent(log: tuple[float, float, float], mask: npt.NDArray[np.bool_]) -> tuple[float, float, float]:
    """Sums for the mean and spread of log object extents (root of the area over the slice's longer side), old ones fading."""
    value = math.log(float(mask.sum()) ** 0.5 / max(mask.shape))
    total, squares, count = (0.9 * v for v in log)
    return total + value, squares + value**2, count + 1


class Batch:
    """All views of some remembered objects together, on the network's device.

    Attributes
    ----------
    images, targets : (B, 3, n, n) standardised pixels; (B, 1, n, n) in {0, 1}
    clicks, firsts : of every view all the user's clicks, and the first positive one alone
    """

    def __init__(self, objects: Sequence[Remembered], device: torch.device) -> None:
        self._views = [len(o.clicks) for o in objects]
        self.images = torch.cat([o.images for o in objects]).float().to(device)
        self.targets = torch.cat([o.targets for o in objects]).float().to(device)
        self.clicks: list[Sequence[WindowClick]] = [clicks for o in objects for clicks in o.clicks]
        self.firsts = [[next((c for c in clicks if c.positive), clicks[0])] for clicks in self.clicks]

    def logits(self, segmenter: NetworkSegmenter, clicks: Sequence[Sequence[WindowClick]], previous: Tensor | None = None) -> Tensor:
        """(B, 1, n, n): what the network says of each view to these clicks, with gradient if the caller wants one."""
        guidance = torch.cat([segmenter.maps(c, self.images.shape[-1]) for c in clicks])
        return segmenter.run(self.images, guidance, torch.zeros_like(self.targets) if previous is None else previous)[0]

    def ious(self, logits: Tensor) -> list[float]:
        """Mean IoU of the answers with the targets over the views of every object."""
        found, wanted = (logits > 0).flatten(1), self.targets.flatten(1) > 0.5
        ious = (found & wanted).sum(1) / (found | wanted).sum(1).clamp_min(1)
        return [float(views.mean()) for views in ious.split(self._views)]


# --- to judge ---------------------------------------------------------------------------------------------------------------------------


def answered(segmenter: NetworkSegmenter, new: Remembered) -> float:
    """IoU of the answers to the first click on an object, over its views."""
    batch = Batch([new], segmenter.device)
    with torch.no_grad():
        return batch.ious(batch.logits(segmenter, batch.firsts))[0]


def gated(
    settings: Settings, segmenter: NetworkSegmenter, new: Remembered, known: float, update: Update
) -> Generator[None, None, LearningReport]:
    """Do an update unless remembered objects pay for it: all of it, or a quarter of the way, or nothing.

    The segmenter then knows how right it is about the remembered objects and the new one (`Knowledge.marks`), unless a step failed.

    Parameters
    ----------
    new : the object that is learnt from
    known : how right its first click was `answered` before
    update : changes the segmenter's weights
    """
    before = segmenter.snapshot()
    old = before.memory
    marks = before.marks if len(before.marks) == len(old) else (yield from _found_out(segmenter, old))
    standard = _means(marks)
    yield
    losses = yield from update
    if losses is None:
        segmenter.restore(replace(before, marks=()))
        return LearningReport(False, "learning was refused: the update was not finite; the model stays as it was", refused=True)
    learnt, lost = segmenter.snapshot(), 0.0
    for share in (1.0, 0.25):
        segmenter.restore(_towards(before, learnt, share))
        found = yield from _found_out(segmenter, (*old, new))
        reached = _means(found[:-1])
        lost = max(a - b for a, b in zip(standard, reached, strict=True))
        if lost <= settings.gate_margin:
            segmenter.restore(replace(segmenter.snapshot(), marks=found))
            message = f"learnt from this object: its first click alone gives IoU {found[-1][0]:.2f} now, {known:.2f} before"
            judged = (standard[1], reached[1]) if old else (math.nan, math.nan)
            return LearningReport(True, message, *losses, remembered_before=judged[0], remembered_after=judged[1])
    segmenter.restore(before)
    segmenter.restore(replace(before, marks=(*marks, *_marks(segmenter, (new,)))))
    message = f"learning was refused: {len(old)} remembered objects would have lost {100 * lost:.1f} points of IoU; the model stays"
    return LearningReport(False, message, refused=True)


def _towards(before: Knowledge, learnt: Knowledge, share: float) -> Knowledge:
    """``learnt``, whose weights went that share of the way from ``before`` only."""
    if share == 1:
        return learnt
    weights = {k: v if v is before.weights[k] else torch.lerp(before.weights[k], v, share) for k, v in learnt.weights.items()}
    return replace(learnt, weights=Tensors(weights))


def doubted(settings: Settings, segmenter: NetworkSegmenter, new: Remembered) -> Generator[None, None, float]:
    """Let go of what was learnt so far as much as it does harm: it is worth what it gains on objects that it was not taught by.

    The taught and the untaught model both answer the user's clicks anew. The weights go back towards the untaught ones by the share that
    the mean loss on the newest objects (each weighing half of the one after it) has in `Settings.full_doubt`. Where another kind of object
    is meant than before, a taught model would insist on the earlier kind, and the gate would keep it there.

    Parameters
    ----------
    new : an accepted object, before anything is learnt from it

    Returns
    -------
    that share, 0..1
    """
    taught, base = segmenter.snapshot(), segmenter.base
    if all(taught.weights[k] is v for k, v in base.weights.items()):
        return 0.0
    with_it = _replayed(segmenter, new)
    yield
    segmenter.restore(base)
    try:
        without = _replayed(segmenter, new)
    finally:
        segmenter.restore(taught)
    yield
    worth = 0.5 * taught.worth[0] + with_it - without, 0.5 * taught.worth[1] + 1.0
    share = min(max(-worth[0] / worth[1] / settings.full_doubt, 0.0), 1.0)
    if not share:
        segmenter.restore(replace(taught, worth=worth))
        return 0.0
    weights = Tensors({k: torch.lerp(v, base.weights[k], share) for k, v in taught.weights.items()})
    segmenter.restore(replace(taught, weights=weights, worth=worth, marks=()))
    return share


def _replayed(segmenter: NetworkSegmenter, new: Remembered) -> float:
    """Mean IoU of the answers to the user's first click, first two, first four, ... and all clicks, each seeing the one before."""
    batch, most = Batch([new], segmenter.device), max(map(len, new.clicks))
    counts = [*takewhile(lambda k: k < most, (1, 2, 4, 8, 16)), most]
    probability, ious = None, []
    with torch.no_grad():
        for count in counts:
            logits = batch.logits(segmenter, [clicks[:count] for clicks in batch.clicks], probability)
            ious += batch.ious(logits)
            probability = torch.sigmoid(logits)
    return fmean(ious)


def _found_out(segmenter: NetworkSegmenter, objects: Sequence[Remembered]) -> Generator[None, None, tuple[tuple[float, float], ...]]:
    """`_marks`, a few objects at a time."""
    marks: tuple[tuple[float, float], ...] = ()
    for first in range(0, len(objects), _AT_A_TIME):
        yield
        marks += _marks(segmenter, objects[first : first + _AT_A_TIME])
    return marks


def _marks(segmenter: NetworkSegmenter, objects: Sequence[Remembered]) -> tuple[tuple[float, float], ...]:
    """IoU of every remembered object, over its views, from the first click alone and from all the user's clicks."""
    if not objects:
        return ()
    with torch.no_grad():
        batch = Batch(objects, segmenter.device)
        first = batch.logits(segmenter, batch.firsts)
        every = batch.logits(segmenter, batch.clicks, torch.sigmoid(first))
        return tuple(zip(batch.ious(first), batch.ious(every), strict=True))


def _means(marks: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Over objects; 1 where there are none."""
    return (fmean(first for first, _ in marks), fmean(every for _, every in marks)) if marks else (1.0, 1.0)
