"""OME-Zarr 0.4 and 0.5 and plain zarr arrays, through zarr.

A plain array has no spacing; its axes are those of its ``dimension_names``, or (z, y, x) from the last to the first, colours last.
OME-Zarr states a scale and a translation along the axes of the array. What else an affine says (rotation, shear, a mirrored axis) is
written beside them, under this package's own name, and counts for as long as the scale agrees with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import zarr

from napari_apprentice import blocks, lazy
from napari_apprentice.blocks import BlockArray
from napari_apprentice.files._content import Content, RefusedError, Source, chosen_time, details_of, stated
from napari_apprentice.files._lengths import MM_PER, unit_for, unit_named
from napari_apprentice.geometry import affine_from_spacing, spacing_of
from napari_apprentice.lazy import LazyArray
from napari_apprentice.types import Image

OWN = "napari-apprentice"
"""Under this name stands what only this package reads; it marks the folders that may be overwritten."""

_UNIT_NAMES = {"pm": "picometer", "Å": "angstrom", "nm": "nanometer", "µm": "micrometer", "mm": "millimeter", "cm": "centimeter"}
_UNIT_NAMES |= {"m": "meter", "in": "inch"}
_VERSION = "0.5"


@dataclass(frozen=True)
class _Frame:
    """What OME-Zarr says of the spatial axes, slowest first.

    Attributes
    ----------
    units : as the file spells them; None where it names none
    scale, translation : in these units
    affine : rows of the whole affine in mm, where scale and translation do not say all
    version : of OME-Zarr
    """

    units: tuple[str | None, ...]
    scale: tuple[float, ...]
    translation: tuple[float, ...]
    affine: tuple[tuple[float, ...], ...] | None = None
    version: str = _VERSION


def begins(head: bytes, path: Path) -> bool:
    """Whether the folder is a zarr group or array."""
    return any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray"))


def check(path: Path) -> None:
    """Open it; what is not there of the voxels counts as empty in a zarr."""
    _opened(path, None, 0)


def load(path: Path, time: int | None, *, exact: bool, level: int = 0) -> Content:
    """Open a zarr array, or a resolution of an OME-Zarr image. What is large stays on the disk."""
    content = _opened(path, time, level)
    small = content.array.nbytes <= lazy.LARGE_BYTES
    return replace(content, array=np.array(content.array[...]), coarser=()) if small else content


def _opened(path: Path, time: int | None, level: int) -> Content:
    """The same with nothing in memory yet."""
    node: Any = zarr.open(str(path), mode="r")
    if isinstance(node, zarr.Array):
        return _plain(node, time, level)
    node, version, multiscale = _multiscale(node)
    letters, units = _axes(multiscale, len(_datasets(node, multiscale)[0].shape))
    arrays = _datasets(node, multiscale)
    if not 0 <= level < len(arrays):
        raise RefusedError(f"has {len(arrays)} resolutions, but level={level} was asked for; expected 0 (the finest) to {len(arrays) - 1}")
    views = [_view(array, letters, time) for array in arrays[level:]]
    space = [letters.index(axis) for axis in "ZYX" if axis in letters]
    scale, translation = _transformation(multiscale, level, len(letters))
    frame = _Frame(
        tuple(units[axis] for axis in space),
        tuple(scale[axis] for axis in space),
        tuple(translation[axis] for axis in space),
        _own_affine(node, level),
        version,
    )
    said = _affine(frame)
    affine, unit = stated(*said)
    array, names = views[0]
    coarser = tuple(view for view, _ in views[1:])
    return Content(array, names, affine, unit, Source(affine, frame if affine is said[0] else None), coarser)


def save(path: Path, array: Any, image: Image, *, labels: bool, go_on: Callable[[], None]) -> None:
    """Write (C, *S) data, or the (S) blocks of a label map that does not fit into memory, as OME-Zarr of one resolution."""
    frame = details_of(image, _Frame) or _frame(image)
    colours = not isinstance(array, BlockArray) and len(array) == 3
    data = array if colours or isinstance(array, BlockArray) else array[0]
    form: Literal[2, 3] = 2 if frame.version == "0.4" else 3
    chunks = (*[1] * colours, *(min(side, most) for side, most in zip(image.shape, blocks.BLOCK[-image.ndim :], strict=True)))
    group = zarr.open_group(str(path), mode="w", zarr_format=form)
    names = [*["c"] * colours, *"zyx"[-image.ndim :]]
    stored = group.create_array(
        "0",
        shape=data.shape,
        chunks=chunks,
        dtype=np.dtype(data.dtype.str),  # numpy has two unsigned types of 64 bits, zarr knows one
        fill_value=0,
        dimension_names=names if form == 3 else None,
        chunk_key_encoding={"name": "v2" if form == 2 else "default", "separator": "/"},
    )
    for region, values in data.pieces() if isinstance(data, BlockArray) else _slabs(data, chunks):
        go_on()
        stored[region] = values
    group.attrs.update(_metadata(image, frame, colours, labels))


def is_own(path: Path) -> bool:
    """Whether this package wrote the folder, so that it may be replaced."""
    try:
        return OWN in zarr.open_group(str(path), mode="r").attrs
    except (OSError, ValueError, KeyError):
        return False


# --- reading ---


def _plain(array: Any, time: int | None, level: int) -> Content:
    if level:
        raise RefusedError(f"is a single array, but level={level} was asked for; expected level=0, or an OME-Zarr image")
    names = getattr(array.metadata, "dimension_names", None) or ()
    stated = "".join(str(name)[:1].upper() for name in names if name)
    n = len(array.shape)
    colours = n > 2 and array.shape[-1] in (3, 4)
    guessed = ("TZYX"[-(n - colours) :] + "S" * colours) if n - colours <= 4 else ""
    letters = stated.replace("S" if "S" in stated else "C", "S")
    named = len(letters) == n and len(set(letters)) == n and set(letters) <= set("TZYXS")
    letters = letters if named else guessed
    if len(letters) != n or not set("YX") <= set(letters):
        raise RefusedError(f"is an array of shape {array.shape}; expected (y, x), (z, y, x) or (t, z, y, x), grey or RGB")
    alpha = not named and colours and array.shape[-1] == 4  # RGBA, as programs have it in memory
    view, axes = _view(array, letters, time, alpha=alpha)
    affine = np.eye(len([axis for axis in axes if axis in "ZYX"]) + 1)
    return Content(view, axes, affine, "pixel", Source(affine, None), alpha=alpha)


def _multiscale(group: Any) -> tuple[Any, str, Mapping[str, Any]]:
    """The group of an image, the version of OME-Zarr that it follows, and its first ``multiscales``."""
    stated = group.attrs.asdict()
    ome = stated.get("ome", stated)
    if "multiscales" not in ome and ("bioformats2raw.layout" in ome or "bioformats2raw.layout" in stated) and "0" in group:
        return _multiscale(group["0"])
    if not ome.get("multiscales"):
        arrays = ", ".join(sorted(name for name, _ in group.arrays())[:5])
        inside = f", such as the array {arrays} in it" if arrays else ""
        raise RefusedError(f"is a zarr group without OME multiscales; expected an OME-Zarr image, or one array{inside}")
    multiscale = ome["multiscales"][0]
    return group, "0.4" if group.metadata.zarr_format == 2 else "0.5", multiscale


def _datasets(group: Any, multiscale: Mapping[str, Any]) -> list[Any]:
    """The arrays, finest first."""
    return [group[dataset["path"]] for dataset in multiscale["datasets"]]


def _axes(multiscale: Mapping[str, Any], n: int) -> tuple[str, list[str | None]]:
    """Letters of the axes, S for channels, and the units that they state."""
    axes = multiscale.get("axes") or list("tczyx")[-n:]
    named = [axis if isinstance(axis, Mapping) else {"name": axis} for axis in axes]
    letters = "".join(str(axis["name"])[:1].upper() for axis in named).replace("C", "S")
    if len(letters) != n or len(set(letters)) != n or not set("YX") <= set(letters) <= set("TSZYX"):
        names = ", ".join(str(axis["name"]) for axis in named)
        raise RefusedError(f"has axes {names} for an array of {n}; expected y and x, and z, t and c or some of them")
    return letters, [axis.get("unit") for axis in named]


def _view(array: Any, letters: str, time: int | None, *, alpha: bool = False) -> tuple[LazyArray, str]:
    """What there is of one time point, and the letters of its axes."""
    chosen = chosen_time(array.shape[letters.index("T")] if "T" in letters else 1, time)
    samples = array.shape[letters.index("S")] if "S" in letters else 1
    if samples - alpha not in (1, 3):
        raise RefusedError(f"has {samples} channels (axes {letters.replace('S', 'C')}, shape {array.shape}); expected 1 (grey) or 3 (RGB)")
    view = LazyArray(array)
    if "T" in letters:
        view = view.at(letters.index("T"), chosen)
    return view, letters.replace("T", "")


def _transformation(multiscale: Mapping[str, Any], level: int, n: int) -> tuple[list[float], list[float]]:
    """Scale and translation of a resolution: those of its dataset, then those of the whole. A scale that nobody states is NaN."""
    transformed = (multiscale["datasets"][level], multiscale)
    scales = any(step["type"] == "scale" for steps in transformed for step in steps.get("coordinateTransformations") or ())
    scale, translation = [1.0 if scales else math.nan] * n, [0.0] * n
    for steps in transformed:
        for step in steps.get("coordinateTransformations") or ():
            if step["type"] == "scale":
                scale = [a * float(b) for a, b in zip(scale, step["scale"], strict=True)]
                translation = [a * float(b) for a, b in zip(translation, step["scale"], strict=True)]
            elif step["type"] == "translation":
                translation = [a + float(b) for a, b in zip(translation, step["translation"], strict=True)]
            elif step["type"] != "identity":
                raise RefusedError(f"states a transformation of type {step['type']!r}; expected scale and translation")
    return scale, translation


def _own_affine(group: Any, level: int) -> tuple[tuple[float, ...], ...] | None:
    """The whole affine of the finest resolution, if this package has written it."""
    own = group.attrs.get(OWN)
    affine = own.get("affine") if isinstance(own, Mapping) and not level else None
    return tuple(tuple(float(v) for v in row) for row in affine) if affine else None


def _affine(frame: _Frame) -> tuple[npt.NDArray[np.float64], str]:
    """Voxel -> world as stated, and its units."""
    units = [unit_named(unit) for unit in frame.units]
    in_mm = all(unit is not None for unit in units)
    factors = [MM_PER[unit] if in_mm and unit is not None else 1.0 for unit in units]
    scale = [length * factor for length, factor in zip(frame.scale, factors, strict=True)]
    origin = [length * factor for length, factor in zip(frame.translation, factors, strict=True)]
    if frame.affine is not None and np.allclose(spacing_of(frame.affine), scale, rtol=1e-6):
        return np.array(frame.affine), "mm" if in_mm else "pixel"
    return affine_from_spacing(scale, origin), "mm" if in_mm else "pixel"


# --- writing ---


def _frame(image: Image) -> _Frame:
    """What to write for an image that did not come out of an OME-Zarr file."""
    unit = unit_for(min(image.spacing)) if image.units == "mm" else None
    length = MM_PER[unit] if unit else 1.0
    straight = affine_from_spacing(image.spacing, image.affine[:-1, -1].tolist())
    scale = tuple(side / length for side in image.spacing)
    origin = tuple(float(value) / length for value in image.affine[:-1, -1])
    exact = np.array_equal(straight, image.affine) and [s * length for s in (*scale, *origin)] == [*image.spacing, *image.affine[:-1, -1]]
    rows = None if exact else tuple(tuple(float(value) for value in row) for row in image.affine)
    return _Frame((_UNIT_NAMES[unit] if unit else None,) * image.ndim, scale, origin, rows)


def _metadata(image: Image, frame: _Frame, colours: bool, labels: bool) -> dict[str, Any]:
    """Attributes of the group."""
    axes = [{"name": "c", "type": "channel"}] * colours
    for name, unit in zip("zyx"[-image.ndim :], frame.units, strict=True):
        axes.append({"name": name, "type": "space", **({"unit": unit} if unit else {})})
    steps = [
        {"type": "scale", "scale": [*[1.0] * colours, *frame.scale]},
        {"type": "translation", "translation": [*[0.0] * colours, *frame.translation]},
    ]
    multiscale = {"name": image.name, "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": steps}]}
    own: dict[str, Any] = {OWN: {"affine": frame.affine} if frame.affine else {}}
    label = {"image-label": {"version": frame.version}} if labels else {}
    if frame.version == "0.4":
        return {"multiscales": [{"version": "0.4", **multiscale}], **label, **own}
    return {"ome": {"version": frame.version, "multiscales": [multiscale], **label}, **own}


def _slabs(data: npt.NDArray[Any], chunks: Sequence[int]) -> Iterator[tuple[tuple[Any, ...], npt.NDArray[Any]]]:
    """Region and values of parts that are as thick as a chunk along all axes but the last two."""
    first = [range(0, size, step) for size, step in zip(data.shape[: data.ndim - 2], chunks, strict=False)]
    for corner in product(*first):
        sides = zip(corner, chunks, data.shape, strict=False)
        region: tuple[Any, ...] = (*(slice(start, min(start + step, size)) for start, step, size in sides), ...)
        yield region, data[region]
