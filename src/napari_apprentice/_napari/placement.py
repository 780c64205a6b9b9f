"""Where an image stands in napari's world: image → layer arguments, layer → image.

napari slices volumes only along its world axes. An axis-aligned image (its affine is diagonal up to signs) therefore
stands at its true place; an oblique or permuted volume is *shown straight*: same voxels, same spacing, same centre,
but parallel to the world axes. Nothing is lost, since the `Image` with its true affine travels in the layer's metadata
and is what sessions and writers work with.

Of a volume that somebody else put obliquely into the world, napari shows another slice than the one that its mouse, its brush and
its picker reach. So a session shows it straight as well, see `straighten`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from napari.utils.transforms import Affine

from napari_apprentice.files import unstated_spacing
from napari_apprentice.geometry import PLACE_TOLERANCE_VOXELS
from napari_apprentice.lazy import LazyArray
from napari_apprentice.types import Image, ImageError, Plane

if TYPE_CHECKING:
    from napari.components import Dims, ViewerModel
    from napari.layers import Layer

__all__ = [
    "LEGEND_KEY",
    "METADATA_KEY",
    "PLACEMENT",
    "SERIES_KEY",
    "apart",
    "full_resolution",
    "hidden_axis",
    "image_of",
    "in_its_world",
    "is_in_mm",
    "lacks_spacing",
    "layer_arguments",
    "look_upright",
    "put_on",
    "runs_backwards",
    "same_placement",
    "show_plane",
    "shown_plane",
    "shown_straight",
    "standing_image",
    "state_spacing",
    "straighten",
    "time_point",
    "time_points_of",
    "voxel_lengths",
]

METADATA_KEY = "napari-apprentice"
"""The layer's metadata hold its `Image` under this key."""

SERIES_KEY = "napari-apprentice-series"
"""The metadata of an image layer that shows one time point of a file: how many there are, and which one it is."""

_UNKNOWN_KEY = "napari-apprentice-spacing-unknown"
"""The metadata of an image layer of which somebody said that nobody knows how large its voxels are."""

LEGEND_KEY = "napari-apprentice-legend"
"""The metadata of a labels layer hold the `Legend` that lay beside its file under this key."""

PLACEMENT = ("scale", "translate", "rotate", "shear", "affine")
"""What says where in the world a layer stands; each has an event of its name."""

_SAME_LENGTH = 1e-3
_OBLIQUE_TOLERANCE = 1e-4
"""Off-diagonal elements of this fraction of the spacing move a voxel of a 1000-voxel axis by a tenth of a voxel: rounding of headers."""


def _displayed_affine(image: Image) -> npt.NDArray[np.float64]:
    """The (n+1, n+1) affine to show ``image`` with: its own if napari can slice along it, else the straight one."""
    affine = np.array(image.affine)
    linear = affine[:-1, :-1]
    spacing = np.asarray(image.spacing)
    if image.ndim == 2:
        return affine
    dominant = np.abs(linear).argmax(axis=0)
    keeps_order = np.array_equal(dominant, np.arange(image.ndim))
    signs = np.sign(np.diag(linear)) if keeps_order else np.ones(image.ndim)
    straight = np.eye(image.ndim + 1)
    straight[:-1, :-1] = np.diag(signs * spacing)
    off_diagonal = np.abs(linear - np.diag(np.diag(linear)))
    if keeps_order and (off_diagonal <= _OBLIQUE_TOLERANCE * spacing.min()).all():
        straight[:-1, :-1] = np.diag(np.diag(linear))
        straight[:-1, -1] = affine[:-1, -1]
        return straight
    centre = (np.asarray(image.shape) - 1) / 2
    straight[:-1, -1] = linear @ centre + affine[:-1, -1] - straight[:-1, :-1] @ centre
    return straight


def shown_straight(image: Image) -> bool:
    """Whether the volume is oblique or permuted, so that napari shows it straight instead of at its true place."""
    return not np.allclose(_displayed_affine(image), image.affine, atol=1e-2 * min(image.spacing))


def straighten(layer: Layer, others: Sequence[Layer] = ()) -> bool:
    """Let a volume that stands oblique to the world axes stand straight, as `layer_arguments` would have it.

    Those of the ``others`` that lie on it go on doing so. The true places travel in the metadata.

    Returns
    -------
    whether it stood oblique
    """
    if layer.ndim != 3 or not _stands_oblique(layer):
        return False
    image = image_of(layer)
    upon = [each for each in others if each is not layer and apart(each, layer) is None]
    true = [image_of(each) if hasattr(each, "contrast_limits") else image for each in upon]  # labels belong to the image
    layer.metadata[METADATA_KEY] = image
    _put(layer, image)
    for each, its in zip(upon, true, strict=True):
        each.metadata[METADATA_KEY] = its
        put_on(each, layer)
    return True


def layer_arguments(image: Image) -> dict[str, Any]:
    """The napari layer arguments of an image: name, placement, units, axis labels, and the image itself in the metadata."""
    return {
        "name": image.name,
        **_transform(_displayed_affine(image)),
        "units": (image.units,) * image.ndim,
        "axis_labels": image.axis_labels,
        "metadata": {METADATA_KEY: image},
    }


def same_placement(layer: Layer, first: Sequence[int] | None = None) -> dict[str, Any]:
    """The arguments that put another layer exactly where ``layer`` is; or a part of it that begins at the voxel ``first``."""
    moved = np.zeros(layer.ndim)
    if first is not None:
        in_world = np.subtract(layer.data_to_world(first), layer.data_to_world(moved))
        moved = np.linalg.solve(layer.affine.linear_matrix, in_world)
    placed = {name: getattr(layer, name) for name in (*PLACEMENT, "units", "axis_labels")}
    return {**placed, "translate": np.asarray(layer.translate) + moved}


def image_of(layer: Layer) -> Image:
    """The image that a napari layer shows: the one it carries if it came from our readers, else as it stands in the world.

    Where somebody gave the layer another scale since, or units of length that the file does not state, these count.

    Raises
    ------
    ImageError : the layer is not a 2D or 3D grey or RGB image
    """
    carried = layer.metadata.get(METADATA_KEY)
    if not isinstance(carried, Image) or carried.shape != _spatial_shape(layer):
        return standing_image(layer)
    shown = carried if _shows(layer, carried) else replace(carried, data=_channels_first(layer), name=layer.name)
    lengths, in_mm = voxel_lengths(layer), is_in_mm(layer)
    same = np.allclose(lengths, shown.spacing, rtol=_SAME_LENGTH, atol=0)
    if (shown.units == "mm" and (same or not in_mm)) or (shown.units == "pixel" and same and not in_mm):
        return shown
    return _respaced(shown, lengths, "mm" if in_mm else shown.units)


def _respaced(image: Image, spacing: Sequence[float] | npt.NDArray[np.float64], units: str) -> Image:
    """An image with voxels of another size. Axes and origin of the world stay at the same voxels."""
    affine = np.array(image.affine)
    affine[:-1, :-1] *= np.divide(spacing, image.spacing)
    affine[:-1, -1] = affine[:-1, :-1] @ np.linalg.solve(image.affine[:-1, :-1], image.affine[:-1, -1])
    return replace(image, affine=affine, units=units)


def _shows(layer: Layer, image: Image) -> bool:
    """Whether a layer still shows the pixels that it came with: not one of their channels, nor what somebody put in their place."""
    in_memory = isinstance(full_resolution(layer), np.ndarray)
    if not in_memory or not isinstance(image.data, np.ndarray):
        return in_memory == isinstance(image.data, np.ndarray)  # else read as it is needed
    if image.data.shape[0] != (3 if getattr(layer, "rgb", False) else 1):
        return False
    shown = _channels_first(layer)
    untouched = shown.ctypes.data == image.data.ctypes.data and shown.strides[1:] == image.data.strides[1:]  # not flipped
    return untouched or np.array_equal(shown, image.data, equal_nan=True)


def standing_image(layer: Layer) -> Image:
    """A layer's array and place in the world as an image, in mm where all its axes have a length unit.

    Raises
    ------
    ImageError : the layer is not a 2D or 3D grey or RGB image
    """
    if layer.ndim not in (2, 3):
        raise ImageError(
            f"the layer {layer.name!r} has {layer.ndim} axes (shape {_spatial_shape(layer)}); expected a 2D image or a 3D volume"
        )
    affine, units = _world(layer)
    return Image(_channels_first(layer), affine, units, name=layer.name)


def apart(labels: Layer, image: Layer) -> str | None:
    """How a labels layer does not lie on an image layer; None if it does. Of labels whose file says no place, only the shape counts."""
    shapes = [_spatial_shape(layer) for layer in (labels, image)]
    if shapes[0] != shapes[1]:
        return f"of shape {shapes[0]} have another shape than {shapes[1]}, that of"
    read = labels.metadata.get(METADATA_KEY)
    if isinstance(read, Image) and read.units == "pixel" and is_in_mm(image):
        return None
    corners = product(*((0, size - 1) for size in shapes[0]))
    per_unit = _mm_per_unit(labels) / _mm_per_unit(image) if is_in_mm(labels) and is_in_mm(image) else 1.0
    lie = ((corner, image.world_to_data(np.asarray(labels.data_to_world(corner)) * per_unit)) for corner in corners)
    distance = max(np.abs(np.subtract(place, corner)).max() for corner, place in lie)
    return f"lie up to {distance:.3g} voxels away from" if distance > PLACE_TOLERANCE_VOXELS else None


def is_in_mm(layer: Layer) -> bool:
    """Whether a layer says how far its voxels are apart, in units of length."""
    return all(unit.is_compatible_with("mm") for unit in layer.units)


def lacks_spacing(layer: Layer) -> bool:
    """Whether nobody has said how large the voxels of a volume are: neither the file nor, in napari or when asked, the user."""
    if layer.metadata.get(_UNKNOWN_KEY):
        return False
    return bool(unstated_spacing(image_of(layer)))


def state_spacing(layer: Layer, spacing_mm: tuple[float, ...] | None, labels: Sequence[Layer] = ()) -> None:
    """Say how large the voxels of a volume are, or None for that nobody knows. Axes and origin of the world stay at the same voxels.

    Those of the ``labels`` that lie on it go on doing so.
    """
    if spacing_mm is None:
        layer.metadata[_UNKNOWN_KEY] = True
        return
    told = _respaced(image_of(layer), spacing_mm, "mm")
    upon = [each for each in labels if apart(each, layer) is None]
    layer.metadata[METADATA_KEY] = told
    layer.units = (told.units,) * told.ndim
    _put(layer, told)
    for each in upon:
        put_on(each, layer)


def time_points_of(layer: Layer) -> tuple[int, int]:
    """How many time points there are of a layer, as (t, z, y, x) or in its file, and which one it shows; (1, 0) of a single image."""
    if layer.ndim == 4:
        return _spatial_shape(layer)[0], 0
    count, shown = layer.metadata.get(SERIES_KEY, (1, 0))
    return int(count), int(shown)


def time_point(layer: Layer, time: int) -> tuple[Any, dict[str, Any]]:
    """One volume of a layer of four axes, and the arguments that put it where it stood."""
    affine = _in_world(layer)
    affine[:, -1] += time * affine[:, 0]
    affine = affine[1:, 1:]
    named = {name: getattr(layer, name)[1:] for name in ("units", "axis_labels")}
    shown = {"contrast_limits": layer.contrast_limits, "rgb": getattr(layer, "rgb", False)}
    return full_resolution(layer)[time], {"name": f"{layer.name} [{time}]", **_transform(affine), **named, **shown}


def hidden_axis(dims: Dims, ndim: int) -> int | None:
    """The axis of an ``ndim``-dimensional layer that the viewer slices across; None if it does not show one plane of it.

    2D images answer 0 where their plane is shown. napari lines the last axes of layers of different dimension up.
    """
    if dims.ndisplay != 2:
        return None
    first = dims.ndim - ndim
    if any(axis < first for axis in dims.displayed):
        return None
    hidden = [axis - first for axis in dims.not_displayed if axis >= first]
    if ndim == 2:
        return 0 if not hidden else None
    return hidden[0] if len(hidden) == 1 else None


def in_its_world(layer: Layer, position: Sequence[float], dims: Dims) -> npt.NDArray[np.float64]:
    """(n,) a place in the world of the viewer, in units of a layer: napari 0.9 shows layers of several units of length in one of these."""
    return np.array(position[-layer.ndim :], float) * _own_units(layer, dims)


def _own_units(layer: Layer, dims: Dims) -> npt.NDArray[np.float64]:
    """(n,) how many units of a layer are one of the viewer."""
    shared = getattr(dims, "units", None)
    if shared is None:
        return np.ones(layer.ndim)
    pairs = zip(shared[-layer.ndim :], layer.units, strict=True)
    return np.array([float((1 * unit).to(own).magnitude) if unit.is_compatible_with(own) else 1.0 for unit, own in pairs])


def shown_plane(dims: Dims, layer: Layer) -> Plane | None:
    """The plane of ``layer`` that the viewer shows; None if it does not show one."""
    axis = hidden_axis(dims, layer.ndim)
    if axis is None:
        return None
    if layer.ndim == 2:
        return Plane(0, 0)
    place = in_its_world(layer, dims.point, dims)
    if not _stands_oblique(layer):
        return Plane(axis, int(np.rint(layer.world_to_data(place)[axis])))  # as napari rounds it, half way between two slices, too
    per_unit, at_origin = _slicing(layer, axis)
    return Plane(axis, int(np.rint(per_unit * place[axis] + at_origin)))


def runs_backwards(layer: Layer, axis: int) -> bool:
    """Whether an axis of a layer runs against that of the world."""
    first, second = (np.asarray(layer.data_to_world(index * np.eye(layer.ndim)[axis])) for index in (0, 1))
    return bool((second - first)[axis] < 0)


def show_plane(dims: Dims, layer: Layer, plane: Plane) -> None:
    """Let the viewer slice across the plane's axis, at the plane. ``layer`` is a volume; the order of the other axes is kept."""
    first = dims.ndim - layer.ndim
    hidden = first + plane.axis
    dims.ndisplay = 2
    if dims.order[-3] != hidden:
        dims.order = (*(axis for axis in dims.order if axis < first), hidden, *(axis for axis in range(first, dims.ndim) if axis != hidden))
    per_unit, at_origin = _slicing(layer, plane.axis)
    if per_unit:  # else napari shows the same slice wherever the slider is
        dims.set_point(hidden, (plane.index - at_origin) / per_unit / _own_units(layer, dims)[plane.axis])


def look_upright(viewer: ViewerModel, upright: bool) -> None:
    """Draw the vertical world axis upwards or, as napari does by default, downwards. World axes point to S, A and R."""
    camera = (viewer.scene if hasattr(viewer, "scene") else viewer).camera  # it moved in napari 0.9
    camera.orientation2d = ("up" if upright else "down", "right")


def _slicing(layer: Layer, axis: int) -> tuple[float, float]:
    """How napari chooses a slice across an axis: slices for each unit of the world along that axis, and the slice at its origin.

    Of the transform of a layer that stands oblique, napari takes that part alone.
    """
    origin, unit = (layer.world_to_data(step * np.eye(layer.ndim)[axis])[axis] for step in (0, 1))
    return float(unit - origin), float(origin)


def _stands_oblique(layer: Layer) -> bool:
    """Whether axes of a layer are not parallel to those of the world with the same number."""
    linear = _in_world(layer)[:-1, :-1]
    lengths = np.linalg.norm(linear, axis=0)
    return bool((np.abs(linear - np.diag(np.diag(linear))) > _OBLIQUE_TOLERANCE * lengths.min()).any())


def _transform(affine: npt.NDArray[np.float64]) -> dict[str, Any]:
    """The layer arguments of a voxel → world matrix (n+1, n+1): scale and origin where that says it all, so that napari shows them."""
    linear = affine[:-1, :-1]
    if np.array_equal(linear, np.diag(np.diag(linear))):
        return {"scale": tuple(np.diag(linear)), "translate": tuple(affine[:-1, -1])}
    return {"affine": affine}


def _put(layer: Layer, image: Image) -> None:
    """Put a volume's layer where its image is shown, in the units that the layer has."""
    affine = _displayed_affine(image)
    if image.units == "mm" and is_in_mm(layer):
        affine[:-1] /= _mm_per_unit(layer)[:, None]
    layer.affine, layer.rotate, layer.shear = np.eye(layer.ndim + 1), np.eye(layer.ndim), np.zeros(layer.ndim)
    layer.scale, layer.translate = np.diag(affine)[:-1], affine[:-1, -1]


def put_on(layer: Layer, other: Layer) -> None:
    """Put a layer exactly where another one is."""
    for name, value in same_placement(other).items():
        now = getattr(layer, name)
        same = now == value if isinstance(value, tuple) else np.array_equal(_matrix(now), _matrix(value))
        if not same:  # whatever is set draws the layer anew
            setattr(layer, name, value)


def _matrix(value: Any) -> Any:
    """Of a transform; else the value itself."""
    return getattr(value, "affine_matrix", value)


def voxel_lengths(layer: Layer) -> npt.NDArray[np.float64]:
    """(n,) how far the voxels of a layer are apart along its axes, in mm, or in what the layer counts."""
    affine, _ = _world(layer)
    return np.linalg.norm(affine[:-1, :-1], axis=0)


def full_resolution(layer: Layer) -> Any:
    """The array of a layer, of a multiscale one that of its first level."""
    return layer.data[0] if layer.multiscale else layer.data


def _spatial_shape(layer: Layer) -> tuple[int, ...]:
    return tuple(full_resolution(layer).shape[: layer.ndim])


def _channels_first(layer: Layer) -> Any:
    """(C, *S) view of a layer's array; an alpha channel is left out."""
    data = full_resolution(layer)
    if not isinstance(data, np.ndarray) and not hasattr(data, "dask"):
        data = data if isinstance(data, LazyArray) else LazyArray(data)  # a zarr array, for one, can neither be transposed nor gain an axis
    if isinstance(data, LazyArray):
        return data.transposed((data.ndim - 1, *range(data.ndim - 1))).head(3) if getattr(layer, "rgb", False) else data.with_axis()
    if not getattr(layer, "rgb", False):
        return data[None]
    return data[..., :3].transpose((data.ndim - 1, *range(data.ndim - 1)))


def _world(layer: Layer) -> tuple[npt.NDArray[np.float64], str]:
    """(n+1, n+1) voxel → world of a layer, in mm where all its axes have a length unit, and the units of the world."""
    affine = _in_world(layer)
    if not is_in_mm(layer):
        return affine, "pixel"
    affine[:-1] *= _mm_per_unit(layer)[:, None]
    return affine, "mm"


def _in_world(layer: Layer) -> npt.NDArray[np.float64]:
    """(n+1, n+1) voxel → world of a layer, in the units that it has."""
    own = Affine(**{name: getattr(layer, name) for name in PLACEMENT if name != "affine"})
    return np.array(layer.affine.compose(own).affine_matrix)


def _mm_per_unit(layer: Layer) -> npt.NDArray[np.float64]:
    return np.array([float((1 * unit).to("mm").magnitude) for unit in layer.units])
