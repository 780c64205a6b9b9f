"""Accepted objects that are remembered: what they look like to the network."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from napari_apprentice.adaptation._targets import mask_in_window
from napari_apprentice.guidance import WindowClick
from napari_apprentice.knowledge import Remembered, kind_of
from napari_apprentice.networks import Recalled
from napari_apprentice.segmenter import NetworkSegmenter
from napari_apprentice.shapes import bounding_box, deepest
from napari_apprentice.types import Box, Click, Lesson, Prediction, Prompt
from napari_apprentice.windows import cut, square

__all__ = ["Batch", "kept", "lesson_windows", "remember", "told", "with_extent"]


def remember(segmenter: NetworkSegmenter, lesson: Lesson, size: int, *, ground: bool = False) -> Remembered:
    """The views of an accepted object that the model should get right from one click on; with ``ground`` what lies around it, too."""
    clicks = told(lesson)
    windows = lesson_windows(segmenter, lesson.mask, clicks)
    views = [segmenter.look(lesson.image_slice, Prompt(clicks), window, size) for window in windows]
    targets = torch.cat([mask_in_window(lesson.mask, window, size) for window in windows])
    of = hashlib.sha256(f"{lesson.case}/{lesson.label}".encode(errors="backslashreplace")).hexdigest()[:12] if lesson.label else ""
    images, seen = torch.cat([v.image for v in views]).half().cpu(), tuple(v.clicks for v in views)
    return Remembered(images, targets > 0.5, seen, of=of, kind=kind_of(lesson.kind), ground=_ground(lesson) if ground else None)


def _ground(lesson: Lesson) -> Tensor:
    """The object and what lies around it, see `Remembered.ground`: so much that it can be seen from afar."""
    found = bounding_box(lesson.mask)
    side = min(max(_AROUND * max(found.shape), _FEWEST), _WHOLE * max(lesson.mask.shape))
    window = square(((found.top + found.bottom - 1) / 2, (found.left + found.right - 1) / 2), side)
    size = min(_GROUND, window.shape[0])
    pixels = cut(lesson.image_slice.data, window, size)
    low, high = torch.quantile(pixels[:, ::2, ::2].flatten(), torch.tensor([0.001, 0.999])).tolist()
    grey = ((pixels - low) * (255 / ((high - low) or 1.0))).clamp(0, 255).round().to(torch.uint8).expand(3, -1, -1)
    return torch.cat([grey, (mask_in_window(lesson.mask, window, size)[0] > 0.5).to(torch.uint8)])


_AROUND, _FEWEST, _WHOLE = 6.0, 48.0, 1.15  # side over the object's extent; pixels at least; over the slice's longer side at most
_GROUND = 256  # pixels that are kept along a side


def kept(memory: Sequence[Remembered], most: int) -> tuple[Remembered, ...]:
    """What of a memory stays: the newest ``most`` objects, and as many of each of the kinds that came up last, so that none is pushed out.

    Objects without a class are a kind, too.
    """
    newest: dict[str, list[int]] = {}
    for number, one in reversed(list(enumerate(memory))):
        newest.setdefault(one.kind, []).append(number)
    last = {number for numbers in list(newest.values())[:_KINDS] for number in numbers[:most]}
    return tuple(one for number, one in enumerate(memory) if number in last or number >= len(memory) - most)


_KINDS = 4


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
    """The clicks of a lesson that count (`types.Prompt`), without boxes; where no positive one stands, after one in the middle of the mask.

    A mask that was painted may have no clicks, and one that was only made smaller negative ones alone: they do not say what it is.
    """
    clicks = Prompt(lesson.clicks).points
    if any({c.voxel: c.positive for c in clicks}.values()):
        return clicks
    middle = Click(deepest(lesson.mask))
    return (middle, *(c for c in clicks if c.voxel != middle.voxel))


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

    def logits(
        self,
        segmenter: NetworkSegmenter,
        clicks: Sequence[Sequence[WindowClick]],
        previous: Tensor | None = None,
        examples: Sequence[Recalled] = (),
    ) -> Tensor:
        """(B, 1, n, n): what the network says of each view to these clicks, with gradient if the caller wants one."""
        guidance = torch.cat([segmenter.maps(c, self.images.shape[-1]) for c in clicks])
        return segmenter.run(self.images, guidance, torch.zeros_like(self.targets) if previous is None else previous, examples)[0]

    def ious(self, logits: Tensor) -> list[float]:
        """Mean IoU of the answers with the targets over the views of every object."""
        found, wanted = (logits > 0).flatten(1), self.targets.flatten(1) > 0.5
        ious = (found & wanted).sum(1) / (found | wanted).sum(1).clamp_min(1)
        return [float(views.mean()) for views in ious.split(self._views)]
