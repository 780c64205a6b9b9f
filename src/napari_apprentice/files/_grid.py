"""Whether a label map lies on the grid of an image, as far as their files say where voxels lie."""

from __future__ import annotations

from itertools import product

import numpy as np

from napari_apprentice.files._content import Content, RefusedError, Source
from napari_apprentice.geometry import spacing_of, voxel_to_world, world_to_voxel
from napari_apprentice.types import Image

_SPACING_TOLERANCE = 0.01
"""PNG keeps whole pixels per metre."""

_PLACE_TOLERANCE_VOXELS = 0.05
"""Headers keep single-precision numbers; what is shifted by half a voxel on purpose is another grid."""


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
        raise RefusedError(f"has a spacing of {_numbers(spacing)}{unit}; expected {_numbers(image.spacing)}{unit}, that of {image.name!r}")
    if placed:
        corners = list(product(*((0, size - 1) for size in shape)))
        apart = np.abs(world_to_voxel(voxel_to_world(corners, content.affine), image.affine) - corners).max()
        if apart > _PLACE_TOLERANCE_VOXELS:
            raise RefusedError(f"lies up to {apart:.3g} voxels away from {image.name!r} in the world; expected the same grid")


def _unnamed(image: Image) -> bool:
    """Whether it lies where its file says, in a unit that the file does not name; nobody has stated a spacing since."""
    source = image.source
    return isinstance(source, Source) and source.unnamed and np.array_equal(source.affine, image.affine)


def _numbers(values: tuple[float, ...]) -> str:
    return " × ".join(f"{value:.4g}" for value in values)
