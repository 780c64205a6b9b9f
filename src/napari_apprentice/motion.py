"""Where the pixels of one slice have gone in the next one: dense optical flow (iterative Lucas-Kanade; Le Besnerais & Champagnat 2005)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

__all__ = ["Motion"]

Picture = npt.NDArray[np.float32]


class Motion:
    """From one picture (C, h, w) to the next.

    Parameters
    ----------
    radius_px : half the side of the window whose pixels move together
    side_px : larger pictures are made smaller first, to this longest side; where one of a single pixel is left, nothing is seen to move

    Attributes
    ----------
    pictures : both (h, w), grey, on one scale from 0 to 1
    """

    def __init__(self, before: npt.NDArray[Any], after: npt.NDArray[Any], radius_px: int = 7, side_px: int = 128) -> None:
        self.pictures = _grey(before, after)
        self._radius_px, self._side_px = radius_px, side_px
        self._there = self._flow(*self.pictures)

    def moved(self, values: Picture) -> Picture:
        """(h, w) values of the slice before, brought to where they are in the slice after."""
        return self._along(values, self._there)

    def moved_back(self, values: Picture) -> Picture:
        """The other way, by a flow of its own."""
        before, after = self.pictures
        return self._along(values, self._flow(after, before))

    def _flow(self, before: Picture, after: Picture) -> npt.NDArray[Any]:
        """(2, h, w) from where in ``before`` every pixel of ``after`` comes, relative to itself."""
        from skimage.registration import optical_flow_ilk  # takes a second to import
        from skimage.transform import resize

        zoom = min(1.0, self._side_px / max(before.shape))
        small = tuple(max(round(zoom * side), 1) for side in before.shape)
        if min(small) == 1:  # a line has no gradient across itself
            return np.zeros((2, *before.shape))
        if zoom < 1:
            before, after = (resize(picture, small, anti_aliasing=True) for picture in (before, after))
        flow = optical_flow_ilk(after, before, radius=self._radius_px, num_warp=4)
        flow = np.nan_to_num(flow)
        if zoom == 1:
            return np.asarray(flow)
        whole = self.pictures[0].shape
        return np.stack([resize(part / (side / size), whole) for part, side, size in zip(flow, small, whole, strict=True)])

    @staticmethod
    def _along(values: Picture, flow: npt.NDArray[Any]) -> Picture:
        return ndimage.map_coordinates(values, np.indices(values.shape) + flow, order=1, mode="nearest")  # type: ignore[no-any-return]


def _grey(*pictures: npt.NDArray[Any]) -> list[Picture]:
    """Means over the channels (h, w), on one scale from 0 to 1 without the outermost percents."""
    grey = [np.asarray(picture, dtype=np.float64).mean(axis=0) for picture in pictures]
    low, high = np.percentile(np.stack(grey), [0.5, 99.5])
    return [((np.clip(picture, low, high) - low) / ((high - low) or 1.0)).astype(np.float32) for picture in grey]
