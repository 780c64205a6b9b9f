"""Where the network looks: at several scales for a first click, then in one window about the object, and closer at what a click changed.

Windows are chosen by the prompt and the slice's shape alone, so that a session can be replayed. Zoom-in follows RITM (Sofiiuk et al., 2021)
and SimpleClick (Liu et al., 2023); `scales` says which of the first looks is believed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from napari_apprentice.geometry import intersection
from napari_apprentice.shapes import bounding_box
from napari_apprentice.types import Box, Click, Prediction, Prompt
from napari_apprentice.windows import square

__all__ = ["ZoomConfig", "widened"]

_MIDDLE, _THICK = 0.75, 0.11
"""So deep inside a mask lies its middle, over its greatest depth, and over the root of its area."""
_MOST_OF_SLICE = 1.15
"""No window is wider than this, over the longer side of the slice."""


@dataclass(frozen=True)
class ZoomConfig:
    """Where the network looks.

    Attributes
    ----------
    size : working size in pixels of a window about an object that was found
    first_size : working size of the windows among which the first click chooses
    first_steps : ratio between the sides of neighbouring first windows
    first_stability : power to which the stability of a first look counts beside its estimated IoU; 0 for not at all
    first_others : at most so many answers of other scales are candidates beside the first answer
    smallest_side_px : no window is narrower, in slice pixels
    margin : side of the window over the extent of the object in it
    wider : factors of further windows about the same centre, whose answers are averaged in
    mirror : average in the answers to mirrored windows
    diffusion : weight of `refinement.pixel_diffusion` beside the logits; 0 for none
    given_diffusion : the same where the previous mask is not an answer of the network, but was carried there, painted or read from a file
    keep_overlap : the window stays while the new one overlaps it by at least this IoU
    first_clicks : so many clicks may start the search for the object's scale again
    larger : so many times as credible has a larger object to be that is found so, see `is_outgrown`
    local_clicks : from this click on an answer changes the mask only near the newest click; 0 for never
    local_reach : how near, over the root of the mask's area
    leaning : the most by which the logits are lowered (or raised) because the corrections so far took away (or added), see `lean`
    closer : a click after the first is also answered in a closer window about what it changed, whose side is that much wider than the
        change; 0 for never
    closer_clicks : from which click on
    late_clicks : from this click on the window is looked at at ``late_size``, and no wider one beside it; 0 for never
    late_size : working size then
    familiar : examples are used where one of the first looks differs no more from one of them in its appearance (`UNet.appearance`, root
        of the mean squared difference)
    """

    size: int = 128
    first_size: int = 128
    first_steps: float = 2.0
    first_stability: float = 2.0
    first_others: int = 3
    smallest_side_px: int = 24
    margin: float = 1.7
    wider: tuple[float, ...] = (1.8,)
    mirror: bool = False
    diffusion: float = 0.0
    given_diffusion: float = 5.0
    keep_overlap: float = 0.5
    first_clicks: int = 3
    larger: float = 2.0
    local_clicks: int = 7
    local_reach: float = 0.1
    leaning: float = 0.2
    closer: float = 2.0
    closer_clicks: int = 2
    late_clicks: int = 7
    late_size: int = 192
    familiar: float = 0.14

    @staticmethod
    def is_late(prompt: Prompt, clicks: int) -> bool:
        """Whether the newest click corrects one place: it is the ``clicks``-th or a later one (0 is never), or the mask was given.

        A negative one deep inside a given mask says that most of that is wrong, and what was only just found is not corrected yet.
        """
        newest, previous = prompt.clicks[-1], prompt.previous
        if clicks == 0 or previous is None:
            return False
        correction = previous.given and (newest.positive or not _deep_inside(previous, newest))
        return correction or (previous.view is not None and len(prompt.clicks) >= clicks)

    @staticmethod
    def is_denied(prompt: Prompt) -> bool:
        """Whether the newest click says that nothing of the object is there: a negative one, as all before, in the middle of a given mask.

        The middle is as deep as almost any place of the mask; what is as thin as a vessel has none.
        """
        newest, previous = prompt.clicks[-1], prompt.previous
        if previous is None or not previous.given or any(c.positive for c in prompt.clicks) or not (mask := previous.mask)[newest.voxel]:
            return False
        box = bounding_box(mask)
        depth = ndimage.distance_transform_edt(np.pad(mask[box.slices], 1))[1:-1, 1:-1]
        here = depth[newest.voxel[0] - box.top, newest.voxel[1] - box.left]
        return bool(here >= max(_MIDDLE * depth.max(), _THICK * np.count_nonzero(depth) ** 0.5))

    def is_lost(self, prompt: Prompt) -> bool:
        """Whether to look for the object's scale: at the start, and when an early negative click deep inside says that it is smaller.

        A mask that was given is never looked for.
        """
        previous, newest = prompt.previous, prompt.clicks[-1]
        if previous is None or not previous.mask_in_box.any():
            return True
        return self._questioned(prompt) is not None and not newest.positive and _deep_inside(previous, newest)

    def is_outgrown(self, prompt: Prompt) -> bool:
        """Whether an early positive click lies outside of what was looked at: the object may be far larger, or go on a little there."""
        seen, newest = self._questioned(prompt), prompt.clicks[-1]
        return seen is not None and newest.positive and not _lies_in(seen, newest)

    def lean(self, clicks: Sequence[Click]) -> float:
        """What the logits are lowered by: whoever takes away again and again finds the masks too wide, also where nobody clicked yet."""
        corrections = [click for click in clicks[1:] if click.box is None]
        away = sum(-1 if click.positive else 1 for click in corrections)
        return self.leaning * away / (len(corrections) + 2)

    def _questioned(self, prompt: Prompt) -> Box | None:
        """The window of an answer whose scale the newest click may call in question.

        None where it is late, or no scale was looked for, as after a box.
        """
        previous = prompt.previous
        if previous is None or previous.given or len(prompt.clicks) > self.first_clicks or len(prompt.points) < len(prompt.clicks):
            return None
        return previous.view

    def first_windows(self, click: Click, shape: tuple[int, int]) -> list[Box]:
        """From the whole slice down to a small window about the first click."""
        side, windows = float(max(shape)), []
        while True:
            centre = tuple(
                (s - 1) / 2 if side >= s else min(max(v, side / 2 - 0.5), s - side / 2 - 0.5)
                for v, s in zip(click.voxel, shape, strict=True)
            )
            windows.append(square(centre, side))  # type: ignore[arg-type]
            side /= self.first_steps
            if side < self.smallest_side_px:
                return windows

    def first_looks(self, clicks: Sequence[Click], shape: tuple[int, int]) -> list[Box]:
        """Those of the first windows in which the object of all ``clicks`` may lie, from wide to narrow; at least one.

        They hold all positive clicks and do not reach far beyond the nearest negative one.
        """
        positive = _on_object(clicks)
        anchor = next(iter(positive), clicks[-1])
        first, *others = self.first_windows(anchor, shape)
        windows = [first, *(w for w in others if all(_lies_in(w, c) for c in positive))]
        reach = _reach(anchor, clicks)
        return [w for w in windows if w.bottom - w.top <= reach] or windows[-1:]

    def grown_window(self, prompt: Prompt, shape: tuple[int, int]) -> Box:
        """The window about the previous mask and the positive clicks."""
        points = [c.voxel for c in _on_object(prompt.clicks)] or [c.voxel for c in prompt.clicks]
        rows, cols = [p[0] for p in points], [p[1] for p in points]
        previous = prompt.previous
        if previous is not None and (mask := previous.mask_in_box).any():
            found = bounding_box(mask)
            rows += [previous.box.top + found.top, previous.box.top + found.bottom - 1]
            cols += [previous.box.left + found.left, previous.box.left + found.right - 1]
        extent = max(max(rows) - min(rows), max(cols) - min(cols)) + 1
        side = max(extent * self.margin, self.smallest_side_px)
        side = min(side, _MOST_OF_SLICE * max(shape))
        return square(((min(rows) + max(rows)) / 2, (min(cols) + max(cols)) / 2), side)

    def window(self, prompt: Prompt, shape: tuple[int, int]) -> Box:
        """The grown window, or the one of the previous look while it still does."""
        new = self.grown_window(prompt, shape)
        old = prompt.previous.view if prompt.previous is not None else None
        if old is None:
            return new
        return old if _lies_in(old, prompt.clicks[-1]) and _overlap(old, new) >= self.keep_overlap else new

    def closer_window(self, changed: Box, seen: Box) -> Box | None:
        """The window about what a click changed; None where nothing did, or it would be hardly narrower than what was ``seen`` already."""
        side = max(max(changed.shape) * self.closer, self.smallest_side_px)
        if changed.shape == (0, 0) or side > 0.7 * seen.shape[0]:
            return None
        return square(((changed.top + changed.bottom - 1) / 2, (changed.left + changed.right - 1) / 2), side)


def widened(window: Box, factor: float, shape: tuple[int, int]) -> Box:
    """The window grown about its centre, though hardly beyond a slice of this shape."""
    side = window.bottom - window.top
    wider = max(min(side * factor, _MOST_OF_SLICE * max(shape)), side)
    return square(((window.top + window.bottom - 1) / 2, (window.left + window.right - 1) / 2), wider)


def _on_object(clicks: Sequence[Click]) -> list[Click]:
    """The positive clicks; the middle of a box only where there are no others, for it may not lie on the object."""
    positive = [c for c in clicks if c.positive]
    return [c for c in positive if c.box is None] or positive


def _lies_in(window: Box, click: Click) -> bool:
    """Whether a 2D click lies in the window."""
    row, col = click.voxel
    return window.top <= row < window.bottom and window.left <= col < window.right


def _reach(anchor: Click, clicks: Sequence[Click]) -> float:
    """Largest side of a window about an object that does not reach from ``anchor`` to the nearest negative click; infinite without one."""
    away = [math.dist(anchor.voxel, c.voxel) for c in clicks if not c.positive]
    return 3.0 * min(away) if away and anchor.positive else math.inf


def _deep_inside(prediction: Prediction, click: Click) -> bool:
    """Whether the mask goes on around the click on all sides, for a fifth of its own extent."""
    mask, box = prediction.mask_in_box, prediction.box
    row, col = click.voxel[0] - box.top, click.voxel[1] - box.left
    reach = max(round(0.2 * float(mask.sum()) ** 0.5), 1)
    if row < reach or col < reach or row + reach >= mask.shape[0] or col + reach >= mask.shape[1]:
        return False
    return float(mask[row - reach : row + reach + 1, col - reach : col + reach + 1].mean()) > 0.95


def _overlap(a: Box, b: Box) -> float:
    """IoU of two boxes."""
    height, width = intersection(a, b).shape
    shared = height * width
    return shared / (a.shape[0] * a.shape[1] + b.shape[0] * b.shape[1] - shared)
