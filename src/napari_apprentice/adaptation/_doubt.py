"""Evidence against what was learnt: it is worth what it gains on objects that it was not taught by."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from itertools import takewhile
from statistics import fmean

import torch

from napari_apprentice.adaptation._memory import Batch
from napari_apprentice.adaptation._settings import Settings
from napari_apprentice.knowledge import Remembered, Tensors
from napari_apprentice.segmenter import NetworkSegmenter

__all__ = ["doubted", "replayed"]

_HIDDEN = 0.1  # share from which on examples are hidden


def doubted(settings: Settings, segmenter: NetworkSegmenter, new: Remembered, answers: Sequence[float]) -> Generator[None, None, float]:
    """Let go of what was learnt so far as much as it does harm: it is worth what it gains on objects that it was not taught by.

    The taught and the untaught model both answer the user's clicks anew. The weights go back towards the untaught ones by the share that
    the mean loss on the newest objects (each weighing half of the one after it) has in `Settings.full_doubt`. Where another kind of object
    is meant than before, a taught model would insist on the earlier kind, and the gate would keep it there. Examples are shown or not:
    they are hidden from a tenth of that loss on, and shown again when they would have helped. Further slices of the object that was
    accepted last do not hide them: what its other slices say is what is meant.
    Nor does an object of a kind that is not known yet (`Knowledge.knows`).

    Parameters
    ----------
    new : an accepted object, before anything is learnt from it
    answers : how right the taught model's are, as `replayed` says

    Returns
    -------
    that share, 0..1
    """
    taught, base = segmenter.snapshot(), segmenter.base
    changed = not all(taught.weights[k] is v for k, v in base.weights.items())
    if not changed and not (settings.examples and taught.memory and segmenter.reads_examples):
        if taught.examples != settings.examples:
            segmenter.restore(replace(taught, examples=settings.examples))
        return 0.0
    if not changed and not taught.knows(new.kind):
        return 0.0
    if not changed and taught.examples and new.of and new.of == taught.memory[-1].of:
        return 0.0
    segmenter.restore(base)
    try:
        without = fmean(replayed(segmenter, new))
    finally:
        segmenter.restore(taught)
    yield
    worth = 0.5 * taught.worth[0] + fmean(answers) - without, 0.5 * taught.worth[1] + 1.0
    share = min(max(-worth[0] / worth[1] / settings.full_doubt, 0.0), 1.0)
    known = replace(taught, worth=worth, examples=settings.examples if share < _HIDDEN else 0)
    if share and changed:
        weights = Tensors({k: torch.lerp(v, base.weights[k], share) for k, v in taught.weights.items()})
        known = replace(known, weights=weights, marks=(), source_mark=None)
    segmenter.restore(known)
    return share


def replayed(segmenter: NetworkSegmenter, new: Remembered, examples: int = 0) -> list[float]:
    """IoU of the answers to the first (positive) click, the first two, the first four, ... and all clicks, each seeing the one before.

    ``examples`` : how many of the newest remembered objects that are alike the network is shown
    """
    batch, most = Batch([new], segmenter.device), max(map(len, new.clicks))
    counts = [*takewhile(lambda k: k < most, (1, 2, 4, 8, 16)), most]
    probability, ious, recollected = None, [], segmenter.recollected(examples, new.kind)
    with torch.no_grad():
        for count in counts:
            shown = [clicks[:count] for clicks in batch.clicks] if count > 1 else batch.firsts
            logits = batch.logits(segmenter, shown, probability, recollected)
            ious += batch.ious(logits)
            probability = torch.sigmoid(logits)
    return ious
