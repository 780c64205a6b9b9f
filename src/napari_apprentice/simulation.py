"""Robots that click in a person's place. They know the truth and correct the worst error of the current mask.

Two rules for clicks, with the names that every table gives them. They disagree on what "the largest error" is:

========== ================================================ =============================================
robot      the largest error                                the click
========== ================================================ =============================================
``centre`` the one with the largest inscribed circle        the centre of that circle
``random`` the 8-connected component with the largest area  a uniformly random pixel of that component
========== ================================================ =============================================

``centre`` is the rule of RITM (Sofiiuk et al., 2021) and of most published tables, ``random`` that of You Point, I Learn.
A third robot, ``box``, begins with a box around the object, whose sides are each off by up to a twentieth of the object's extent, and
goes on as ``centre``. No robot has a memory: the same truth, mask and earlier clicks give the same click.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from napari_apprentice.types import Box, Click, InputError, User

__all__ = ["ROBOTS", "BoxRobot", "CentreRobot", "RandomRobot", "make_robot"]

Mask = npt.NDArray[np.bool_]

_EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)
_MOST_WINDOWS = 32


@dataclass(frozen=True)
class CentreRobot:
    """Clicks in the centre of the largest circle that fits into the missing or into the superfluous pixels.

    The exact Euclidean distance transform of the false negatives and that of the false positives are taken apart, the border of the
    image counts as an edge, and pixels clicked before count as 0. The click is positive where the maximum over the false negatives is
    strictly the larger one; it lies at the first pixel in raster order that attains its maximum. When every wrong pixel has been
    clicked already, the earlier clicks are disregarded: the model did not listen, and the loop goes on.
    """

    def click(self, truth: Mask, mask: Mask, clicks: tuple[Click, ...] = ()) -> Click | None:
        """The next click.

        Parameters
        ----------
        truth, mask : (H, W) bool, the object and what the model makes of it
        clicks : 2D clicks made so far; their pixels are not clicked again

        Returns
        -------
        a 2D click ``(row, col)``; None for a perfect mask

        Raises
        ------
        InputError : the masks are not 2D, or differ in shape
        """
        missing, superfluous = _errors(truth, mask)
        used = tuple(click.voxel for click in clicks)
        radius_missing, centre_missing = _inscribed_circle(missing, used)
        radius_superfluous, centre_superfluous = _inscribed_circle(superfluous, used)
        if radius_missing == radius_superfluous == 0:
            return self.click(truth, mask) if used and (missing.any() or superfluous.any()) else None
        positive = radius_missing > radius_superfluous
        return Click(centre_missing if positive else centre_superfluous, positive)


@dataclass(frozen=True)
class RandomRobot:
    """Clicks on a uniformly random pixel of the largest 8-connected error.

    The largest by area of all components of the false negatives and of the false positives; of equally large ones a missing part before
    a superfluous one, then the first in raster order. A clicked pixel is not clicked again while an error holds another one.

    Parameters
    ----------
    seed : what all draws follow from, together with the truth and the number of earlier clicks. An object's clicks therefore do not
        depend on how many clicks other objects took, and two models can be compared on the same draws.
    """

    seed: int = 0

    def click(self, truth: Mask, mask: Mask, clicks: tuple[Click, ...] = ()) -> Click | None:
        """The next click; parameters, result and errors as for `CentreRobot.click`."""
        missing, superfluous = _errors(truth, mask)
        used = [click.voxel for click in clicks]
        found = _largest_component(missing, superfluous, used) or _largest_component(missing, superfluous, [])
        if found is None:
            return None
        pixels, positive = found
        generator = np.random.default_rng([self.seed, len(clicks), zlib.crc32(np.packbits(truth).tobytes())])
        row, col = pixels[generator.integers(len(pixels))]
        return Click((int(row), int(col)), positive)


_OFF = 0.05


@dataclass(frozen=True)
class BoxRobot:
    """Draws a box around the object first, by hand; then clicks as `CentreRobot`.

    Each side of the box is off by as much as a uniform draw of at most a twentieth of the object's height or width says, to the nearest
    pixel; no box reaches beyond the image.

    Parameters
    ----------
    seed : what all draws follow from, together with the truth
    """

    seed: int = 0

    def click(self, truth: Mask, mask: Mask, clicks: tuple[Click, ...] = ()) -> Click | None:
        """The next click; parameters, result and errors as for `CentreRobot.click`, but that the first one is a box."""
        missing, superfluous = _errors(truth, mask)
        if clicks or not np.any(truth) or not (missing.any() or superfluous.any()):
            return CentreRobot().click(truth, mask, tuple(click for click in clicks if click.box is None))
        rows, cols = ndimage.find_objects(np.asarray(truth, dtype=np.uint8))[0]
        generator = np.random.default_rng([self.seed, zlib.crc32(np.packbits(truth).tobytes())])
        height, width = rows.stop - rows.start, cols.stop - cols.start
        off = np.rint(generator.uniform(-_OFF, _OFF, 4) * (height, width, height, width)).astype(int)
        top, left = max(rows.start + off[0], 0), max(cols.start + off[1], 0)
        bottom, right = min(rows.stop + off[2], truth.shape[0]), min(cols.stop + off[3], truth.shape[1])
        return Click.around(Box(int(top), int(left), int(max(bottom, top + 1)), int(max(right, left + 1))))


ROBOTS: tuple[str, ...] = ("centre", "random", "box")
"""The names that `make_robot` knows."""


def make_robot(name: str, seed: int = 0) -> User:
    """The robot of that name. ``seed`` matters to robots that draw.

    Raises
    ------
    InputError : no robot has this name
    """
    if name == "centre":
        return CentreRobot()
    if name == "random":
        return RandomRobot(seed)
    if name == "box":
        return BoxRobot(seed)
    raise InputError(f"a robot named {name!r} was asked for; expected one of {', '.join(ROBOTS)}")


def _errors(truth: Mask, mask: Mask) -> tuple[Mask, Mask]:
    """(H, W) false negatives and false positives."""
    truth, mask = np.asarray(truth), np.asarray(mask)
    if truth.ndim != 2 or truth.shape != mask.shape:
        raise InputError(f"a truth of shape {truth.shape} and a mask of shape {mask.shape} arrived; expected two of the same shape (H, W)")
    truth, mask = truth.astype(bool, copy=False), mask.astype(bool, copy=False)
    return truth & ~mask, mask & ~truth


def _inscribed_circle(error: Mask, used: tuple[tuple[int, ...], ...]) -> tuple[float, tuple[int, int]]:
    """Radius and centre of the largest circle inside ``error`` whose centre is not in ``used``; radius 0 where there is none.

    The exact transform is costly and only its maximum matters, so it is taken around the pixels that can hold it. Chessboard distance c
    and Euclidean distance e to the nearest pixel outside obey c <= e <= sqrt(2) c, hence 2 c^2 >= max(c)^2 where e is largest.
    Nothing beyond the bounding box of the error is nearer than the frame of zeros around the box: the frame stands for all of it.
    """
    box = ndimage.find_objects(error.astype(np.uint8))
    if not box:
        return 0.0, (0, 0)
    top, left = (int(side.start) - 1 for side in box[0])
    inside = np.pad(error[box[0]], 1)
    chessboard = ndimage.distance_transform_cdt(inside, "chessboard")
    for row, col in used:
        if 0 <= row - top < inside.shape[0] and 0 <= col - left < inside.shape[1]:
            chessboard[row - top, col - left] = 0
    peak = int(chessboard.max())
    candidates = inside & (2 * np.square(chessboard, dtype=np.int64) >= max(peak, 1) ** 2)
    radius, centre = 0.0, (0, 0)
    for window, own in _windows(candidates, math.isqrt(2 * peak**2) + 1):
        distance = np.where(own, ndimage.distance_transform_edt(inside[window]), 0.0)
        peak_row, peak_col = np.unravel_index(distance.argmax(), distance.shape)
        largest = float(distance[peak_row, peak_col])
        found = int(peak_row) + window[0].start + top, int(peak_col) + window[1].start + left
        if largest > radius or (largest == radius and found < centre):
            radius, centre = largest, found
    return radius, centre


def _windows(candidates: Mask, reach: int) -> Iterator[tuple[tuple[slice, slice], Mask]]:
    """Rectangles with all pixels up to ``reach`` around some of the candidates, and these candidates inside; together they hold all."""
    components, count = ndimage.label(candidates, _EIGHT_CONNECTED)
    if count > _MOST_WINDOWS:  # many small windows cost more than the single large one
        components = candidates.astype(np.uint8)
    for index, (rows, cols) in enumerate(ndimage.find_objects(components), start=1):
        window = slice(max(rows.start - reach, 0), rows.stop + reach), slice(max(cols.start - reach, 0), cols.stop + reach)
        yield window, components[window] == index


def _largest_component(missing: Mask, superfluous: Mask, used: list[tuple[int, ...]]) -> tuple[npt.NDArray[np.intp], bool] | None:
    """The (P, 2) pixels outside ``used`` of the largest component that has any, and whether they are missing ones."""
    best: tuple[npt.NDArray[np.intp], bool] | None = None
    best_area = 0
    for error, positive in ((missing, True), (superfluous, False)):
        components, _ = ndimage.label(error, _EIGHT_CONNECTED)
        areas = np.bincount(components.ravel())
        areas[0] = 0
        for component in np.argsort(-areas, kind="stable"):
            if areas[component] <= best_area:
                break
            pixels = _pixels(components, int(component), used)
            if len(pixels):
                best, best_area = (pixels, positive), int(areas[component])
                break
    return best


def _pixels(components: npt.NDArray[np.int32], component: int, used: list[tuple[int, ...]]) -> npt.NDArray[np.intp]:
    """(P, 2) coordinates of one component in raster order, without those in ``used``."""
    inside = components == component
    for voxel in used:
        inside[voxel] = False
    return np.argwhere(inside)
