"""Whether an accepted mask can be what it is said to be, as far as the image and the remembered objects tell."""

from __future__ import annotations

from statistics import fmean

import numpy as np
import numpy.typing as npt

from napari_apprentice.knowledge import Remembered
from napari_apprentice.shapes import signed_distance

__all__ = ["contrast"]


def contrast(one: Remembered) -> float:
    """How far the pixels within the contour lie from those beyond it, in standard deviations of both; mean over views."""
    return fmean(_contrast(image, target[0]) for image, target in zip(one.images.float().numpy(), one.targets.numpy(), strict=True))


def _contrast(image: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]) -> float:
    """Of an image (3, n, n) along the contour of a mask (n, n), in the channel where it is largest; 0 where there is no contour."""
    if not mask.any() or mask.all():
        return 0.0
    depth, width = signed_distance(mask), max(3.0, 0.15 * float(mask.sum()) ** 0.5)
    within, beyond = (depth > 1) & (depth < 1 + width), (depth < -1) & (depth > -1 - width)
    within = within if within.any() else mask
    beyond = beyond if beyond.any() else ~mask
    inner, outer = image[:, within], image[:, beyond]
    apart = np.abs(inner.mean(1) - outer.mean(1)) / (inner.std(1) + outer.std(1) + 1e-6)
    return float(apart.max())
