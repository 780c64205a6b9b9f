"""A few procedural objects that stand for all that the untaught model can do: rehearsed and judged by beside what was accepted.

Learning without Forgetting (Li & Hoiem, 2016): the taught model is to go on answering them as the untaught one did. They are the same
for everybody, drawn from fixed seeds, and cost no space on disk.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count, islice
from statistics import fmean
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from napari_apprentice.adaptation._memory import Batch
from napari_apprentice.adaptation._targets import mask_in_window
from napari_apprentice.guidance import WindowClick
from napari_apprentice.knowledge import Remembered
from napari_apprentice.segmenter import NetworkSegmenter
from napari_apprentice.shapes import bounding_box, deepest
from napari_apprentice.synthetic import scene
from napari_apprentice.windows import cut, square, standardise

__all__ = ["Source", "mark_now", "source_of"]

_SCENE = 160
_SHARES = (0.01, 0.3)  # of a scene that an object may fill
_CORRECTIONS = 3


@dataclass(frozen=True, eq=False)
class Source:
    """K procedural objects, one view each, and what the untaught model says of them.

    Attributes
    ----------
    objects : with a click in their middle and corrections of the untaught model's answers
    answers : (K, 2, n, n) its probabilities after the first click alone, and after all of them
    mark : IoU of the answers to all clicks with the truth, mean over objects
    """

    objects: tuple[Remembered, ...]
    answers: Tensor
    mark: float


_KNOWN: WeakKeyDictionary[NetworkSegmenter, Source] = WeakKeyDictionary()


def source_of(segmenter: NetworkSegmenter, number: int, size: int) -> Generator[None, None, Source]:
    """The ``number`` objects of a segmenter in windows of ``size``, made the first time in steps between which it may be used."""
    known = _KNOWN.get(segmenter)
    if known is not None and (len(known.objects), known.answers.shape[-1]) == (number, size):
        return known
    found = []
    for one in islice((d for d in (_drawn(seed, size) for seed in count()) if d is not None), number):
        yield
        found.append(_answered(segmenter, *one))
    objects, answers = zip(*found, strict=True)
    made = Source(objects, torch.cat(answers), 0.0)
    _KNOWN[segmenter] = made = replace(made, mark=fmean(Batch(objects, segmenter.device).ious(torch.logit(made.answers[:, 1:]))))
    return made


def mark_now(segmenter: NetworkSegmenter, source: Source) -> float:
    """How right the model is about them now: IoU of its answers to all clicks after what the untaught model said to the first."""
    batch = Batch(source.objects, segmenter.device)
    with torch.no_grad():
        return fmean(batch.ious(batch.logits(segmenter, batch.clicks, source.answers[:, :1])))


@lru_cache(maxsize=32)
def _drawn(seed: int, size: int) -> tuple[Tensor, npt.NDArray[np.bool_]] | None:
    """The pixels (1, 3, n, n) of a window on an object of a scene, and the object (n, n); None if the scene has none of a fitting size."""
    made, rng = scene(seed, _SCENE), np.random.default_rng(seed)
    labels = made.layers[int(np.argmax(made.weights))]
    shares = np.bincount(labels.ravel()) / labels.size
    shares[0] = 0
    fitting = np.flatnonzero((shares >= _SHARES[0]) & (shares <= _SHARES[1]))
    if not len(fitting):
        return None
    mask = labels == rng.choice(fitting)
    box = bounding_box(mask)
    window = square(((box.top + box.bottom - 1) / 2, (box.left + box.right - 1) / 2), rng.uniform(1.5, 3.0) * max(box.shape))
    return standardise(cut(made.image, window, size))[None], mask_in_window(mask, window, size)[0, 0].numpy() > 0.5


def _answered(segmenter: NetworkSegmenter, pixels: Tensor, target: npt.NDArray[np.bool_]) -> tuple[Remembered, Tensor]:
    """An object with its clicks, and what the untaught model says to the first and to all of them, (1, 2, n, n)."""
    taught = segmenter.snapshot()
    segmenter.restore(segmenter.base)
    try:
        with torch.no_grad():
            one = Remembered(pixels.half(), torch.from_numpy(target)[None, None], ((_deepest(target, target),),))
            batch = Batch([one], segmenter.device)
            first = torch.sigmoid(batch.logits(segmenter, batch.firsts))
            wrong, count = ndimage.label((first[0, 0] > 0.5).cpu().numpy() != target)
            areas = np.bincount(wrong.ravel(), minlength=2)[1:]
            largest = (wrong == part + 1 for part in np.argsort(-areas)[: min(count, _CORRECTIONS)])
            clicks = (*one.clicks[0], *(_deepest(part, target) for part in largest))
            every = torch.sigmoid(batch.logits(segmenter, [clicks], first))
    finally:
        segmenter.restore(taught)
    return replace(one, clicks=(clicks,)), torch.cat([first, every], 1)


def _deepest(part: npt.NDArray[np.bool_], target: npt.NDArray[np.bool_]) -> WindowClick:
    """A click in the middle of a part of the window, which says what is true there."""
    row, col = deepest(part)
    return WindowClick(float(row), float(col), bool(target[row, col]))
