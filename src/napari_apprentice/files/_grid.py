"""Whether a label map lies on the grid of an image, as far as their files say where voxels lie."""

from __future__ import annotations

import numpy as np

from napari_apprentice.files._content import Content, RefusedError, Source
from napari_apprentice.geometry import PLACE_TOLERANCE_VOXELS, spaced, spacing_of, voxels_apart
from napari_apprentice.types import Image

_SPACING_TOLERANCE = 0.01
"""PNG keeps whole pixels per metre."""


def check(content: Content, shape: tuple[int, ...], image: Image, *, placed: bool) -> None:
    """Raise `RefusedError` unless a label map of ``shape`` lies on the grid of ``image``.

    Where either of the two states no physical spacing, only the shapes are compared, unless both say in the same unknown unit where their
    voxels lie. ``placed`` says that both files also tell where the voxels lie in the world, not only how far apart.
    """
    if shape != image.shape:
        raise RefusedError(f"has shape {shape}; expected {image.shape}, that of {image.name!r}")
    named = content.units == "mm" and image.units == "mm"
    if not named and not (content.source.unnamed and _unnamed(image)):
        return
    spacing, unit = spacing_of(content.affine), " mm" if named else ""
    if not np.allclose(spacing, image.spacing, rtol=_SPACING_TOLERANCE, atol=0):
        raise RefusedError(f"has a spacing of {spaced(spacing)}{unit}; expected {spaced(image.spacing)}{unit}, that of {image.name!r}")
    if placed and (apart := voxels_apart(shape, content.affine, image.affine)) > PLACE_TOLERANCE_VOXELS:
        raise RefusedError(f"lies up to {apart:.3g} voxels away from {image.name!r} in the world; expected the same grid")


def _unnamed(image: Image) -> bool:
    """Whether it lies where its file says, in a unit that the file does not name; nobody has stated a spacing since."""
    source = image.source
    return isinstance(source, Source) and source.unnamed and np.array_equal(source.affine, image.affine)
