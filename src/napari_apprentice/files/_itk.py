"""MetaImage (.mha, .mhd) and NRRD through SimpleITK, which orders axes fastest first and points world axes to L, P, S.

ITK takes a spacing that is not stated for 1 mm, refuses one of 0, and passes over the unit of lengths. So the header is looked at first;
what it says of the place of voxels is left out where that is of no use.
"""

from __future__ import annotations

import math
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813

from napari_apprentice.files._content import Content, RefusedError, Source, chosen_time, details_of, stated
from napari_apprentice.files._lengths import MM_PER, unit_named
from napari_apprentice.geometry import reverse_axes, spacing_of, swap_lps_ras
from napari_apprentice.types import Image, invertible

# Fields of the two formats, lower case, that say where voxels lie.
_SPACINGS = ("elementspacing", "elementsize", "spacings")
_DIRECTIONS = ("transformmatrix", "rotation", "orientation")
_VECTORS = "space directions"
_PLACES = (
    *(*_SPACINGS, *_DIRECTIONS, _VECTORS),
    *("offset", "position", "origin", "centerofrotation", "anatomicalorientation"),
    *("space", "space dimension", "space units", "space origin", "measurement frame", "units"),
)
_DATA_FILES = ("elementdatafile", "data file", "datafile")
_SPATIAL_KINDS = ("domain", "space", "???")
_DOMAIN_KINDS = (*_SPATIAL_KINDS, "time", "none")  # what ITK makes an axis of; of the first other kind it makes the components of a voxel
_COLOUR_KINDS = ("rgb-color", "rgba-color", "3-color", "4-color")
_MOST_LINES = 100_000


@dataclass(frozen=True)
class _Header:
    """The text before the voxels.

    Attributes
    ----------
    lines : by field, lower case; what is no field stands under its own text
    size : bytes
    """

    lines: Mapping[str, bytes]
    size: int

    def value(self, *fields: str) -> str | None:
        """What the first of some fields that is there says."""
        line = next((self.lines[field] for field in fields if field in self.lines), None)
        return None if line is None else re.split(r"=|:", line.decode("latin-1"), maxsplit=1)[1].lstrip("=").strip()

    def numbers(self, *fields: str) -> list[float] | None:
        """The numbers of that field, NaN for what is none; None without the field."""
        text = self.value(*fields)
        return None if text is None else [_number(word) for word in text.replace(",", " ").split()]


@dataclass(frozen=True)
class _Frame:
    """ITK's own words for where an image lies, fastest axis first.

    Attributes
    ----------
    spacing, origin, direction : of its voxels
    units : of the world axes as the file spells them, of which ITK knows nothing; () where it does not say, which means mm
    """

    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]
    units: tuple[str, ...] = ()

    @property
    def lengths(self) -> tuple[float, ...] | None:
        """Millimetres in the unit of every world axis; None if one of them is no length."""
        named = [unit_named(unit) for unit in self.units] or ["mm"] * len(self.spacing)
        return None if None in named else tuple(MM_PER[unit] for unit in named if unit is not None)


def begins(head: bytes, path: Path) -> bool:
    """Whether these are the first bytes of a NRRD or MetaImage file."""
    return head.startswith(b"NRRD") if _is_nrrd(path) else b"NDims" in head


def check(path: Path) -> None:
    """Look at the header, and whether the voxels are there: of compressed ones nobody can tell how many without unpacking them."""
    header = _header(path)
    if not _states_spacing(header) and header.lines.keys() & set(_PLACES):
        load(path, None, exact=False)  # ITK does not read such a header
        return
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    components = reader.GetNumberOfComponents()
    _chosen_time(header, reader.GetSize(), components, None)
    if components > 1:
        _check_colours(header, components, sitk.GetPixelIDValueAsString(reader.GetPixelID()))
    named = header.value(*_DATA_FILES) or "LOCAL"
    local = named.upper() == "LOCAL"
    voxels = path if local else path.parent / named
    if not voxels.is_file() and not re.match(r"LIST\b", named) and "%" not in named:
        raise ValueError(f"its voxels are to be in {named}, which is not there")
    packed = (header.value("compresseddata") or "").lower() == "true" or (header.value("encoding") or "raw").lower() != "raw"
    if packed or not voxels.is_file():
        return
    bits = re.search(r"(\d+)-bit", sitk.GetPixelIDValueAsString(reader.GetPixelID()))
    needed = math.prod(reader.GetSize()) * components * (int(bits[1]) // 8 if bits else 1)
    size = voxels.stat().st_size - local * header.size
    if size < needed:
        raise ValueError(f"{needed} bytes of voxels are stated, {size} are there")


def _chosen_time(header: _Header, size: tuple[int, ...], components: int, time: int | None) -> tuple[str, int]:
    """Along what ITK has the time points, "T" for its last axis, "S" for the components of a voxel, "" for none; and the chosen one."""
    kinds, n_axes = _kinds(header), len(size)
    domain = [kind for kind in kinds if kind in _DOMAIN_KINDS]
    along = "S" * (components > 1 and _of_components(kinds) == "list") + "T" * (n_axes == 4 or (n_axes == 3 and domain[2:3] == ["time"]))
    if n_axes > 4 or len(along) > 1:
        raise RefusedError(f"has {n_axes + ('S' in along)} axes, of shape {size}; expected (x, y), (x, y, z) or (x, y, z, time)")
    if "time" in domain[:-1]:
        raise RefusedError(f"has its time points along axis {domain.index('time') + 1} of {n_axes}; expected them along the last one")
    return along, chosen_time({"S": components, "T": size[-1]}.get(along, 1), time)


def _check_colours(header: _Header, components: int, pixels: str) -> None:
    """Refuse vectors, such as displacements, of as many components as a pixel has colours; a MetaImage does not tell the two apart.

    ``pixels`` is what ITK calls their type. Many programs, ITK among them, write colours as vectors, but as positive integers.
    """
    kind = _of_components(_kinds(header))
    if kind and kind not in _COLOUR_KINDS and not (kind == "vector" and "unsigned" in pixels):
        raise RefusedError(
            f"has {components} components of the kind {kind} ({pixels}) in a voxel; expected grey, or RGB of the kind RGB-color"
        )


def load(path: Path, time: int | None, *, exact: bool) -> Content:
    """Read a MetaImage or NRRD file."""
    header = _header(path)
    is_stated = _states_spacing(header)
    image = sitk.ReadImage(str(path)) if is_stated or not header.lines.keys() & set(_PLACES) else _read_without_place(path, header)
    array = sitk.GetArrayFromImage(image)
    n_axes, components = image.GetDimension(), image.GetNumberOfComponentsPerPixel()
    along, chosen = _chosen_time(header, image.GetSize(), components, time)
    if along:
        array = array[chosen] if along == "T" else array[..., chosen]
    if has_colours := components > 1 and along != "S":
        _check_colours(header, components, image.GetPixelIDTypeAsString())
    n = n_axes - (along == "T")
    direction = np.reshape(image.GetDirection(), (n_axes, n_axes))[:n, :n]
    frame = _Frame(image.GetSpacing()[:n], image.GetOrigin()[:n], tuple(direction.ravel().tolist()), _units(header, n))
    affine, units = stated(_affine(frame) if is_stated else np.zeros((n + 1, n + 1)), "mm" if frame.lengths else "pixel")
    axes = "ZYX"[-n:] + "S" * has_colours
    alpha = "rgba-color" in _kinds(header)
    return Content(array, axes, affine, units, Source(affine, frame if is_stated else None), alpha=alpha)


def save(path: Path, array: npt.NDArray[Any], image: Image, *, labels: bool, go_on: Callable[[], None]) -> None:
    """Write (C, *S) data as MetaImage or NRRD."""
    if array.dtype == np.float16:
        raise RefusedError("cannot hold values of type float16; expected float32 or integers, or another format")
    grey = len(array) == 1
    written = sitk.GetImageFromArray(array[0] if grey else np.moveaxis(array, 0, -1), isVector=not grey)
    frame = details_of(image, _Frame)
    if frame is None or (len(set(frame.units)) > 1 and not _is_nrrd(path)):
        frame = _frame(image.affine)
    written.SetSpacing(frame.spacing)
    written.SetOrigin(frame.origin)
    written.SetDirection(frame.direction)
    go_on()
    sitk.WriteImage(written, str(path), useCompression=True)  # which nobody can interrupt
    if frame.units:
        _state_units(path, frame.units)
    if not grey and _is_nrrd(path):
        before, _, rest = path.read_bytes().partition(b"kinds: vector")
        path.write_bytes(before + b"kinds: RGB-color" + rest)
    go_on()
    _check(path, array, _affine(frame))


def _is_nrrd(path: Path) -> bool:
    return path.name.lower().endswith(".nrrd")


def _header(path: Path) -> _Header:
    """That of a MetaImage ends with the field that names the file of the voxels, that of a NRRD with an empty line."""
    lines: dict[str, bytes] = {}
    with path.open("rb") as file:
        for _ in range(_MOST_LINES):
            line = file.readline()
            text = line.decode("latin-1").strip()
            lines[re.split(r"=|:", text, maxsplit=1)[0].strip().lower() if re.search(r"=|:", text) else text] = line
            if not text or (text.lower().startswith(_DATA_FILES[0])):
                break
        return _Header(lines, file.tell())


def _kinds(header: _Header) -> list[str]:
    """What the axes of a NRRD are, lower case; nothing where it does not say so."""
    return (header.value("kinds") or "").lower().split()


def _of_components(kinds: list[str]) -> str:
    """What the components of a voxel are; "" where nothing says so."""
    return next((kind for kind in kinds if kind not in _DOMAIN_KINDS), "")


def _axes(header: _Header) -> tuple[int, list[int]]:
    """How many axes there are, and the first three that lie in space."""
    kinds = _kinds(header)
    n_axes = int((header.numbers("ndims", "dimension") or [0])[0])
    return n_axes, [axis for axis in range(n_axes) if axis >= len(kinds) or kinds[axis] in _SPATIAL_KINDS][:3]


def _units(header: _Header, n: int) -> tuple[str, ...]:
    """What a header says that the lengths along the world axes are in; () if it does not say so of all of them."""
    if (text := header.value("distanceunits")) is not None:
        words = [text] * n
    else:
        words = re.findall(r'"([^"]*)"', header.value("space units") or "")[:n]
        if not words and (of_axes := re.findall(r'"([^"]*)"', header.value("units") or "")):
            words = [of_axes[axis] for axis in _axes(header)[1] if axis < len(of_axes)]
    units = tuple(word.encode("latin-1").decode("utf-8", "replace").strip() for word in words)
    return units if len(units) == n and not set(units) & {"", "?", "???"} else ()


def _state_units(path: Path, units: tuple[str, ...]) -> None:
    """Say in a header, as ITK has written it, what its lengths are in."""
    after, line = b"ElementSpacing", f"DistanceUnits = {units[0]}\n"
    if _is_nrrd(path):
        quoted = " ".join(f'"{unit}"' for unit in units)
        after, line = b"space directions:", f"space units: {quoted}\n"
    before, field, rest = path.read_bytes().partition(after)
    path.write_bytes(before + line.encode() + field + rest)


def _states_spacing(header: _Header) -> bool:
    """Whether a header says how far voxels are apart, and nothing that cannot be true about their directions."""
    n_axes, spatial = _axes(header)
    n = len(spatial)
    if (text := header.value(_VECTORS)) is not None:
        vectors = [[_number(word) for word in vector.split(",")] for vector in re.findall(r"\(([^)]*)\)", text)][:n]
        return all(len(vector) in (n, n_axes) for vector in vectors) and _spans([vector[:n] for vector in vectors], n)
    lengths, directions = header.numbers(*_SPACINGS), header.numbers(*_DIRECTIONS)
    if lengths is None or any(axis >= len(lengths) or not np.isfinite(lengths[axis]) or lengths[axis] == 0 for axis in spatial):
        return False
    return directions is None or (len(directions) == n_axes**2 and _spans(np.reshape(directions, (n_axes, n_axes)), n_axes))


def _spans(vectors: npt.ArrayLike, n: int) -> bool:
    """Whether there are n finite directions, and no two of them the same."""
    matrix = np.asarray(vectors, dtype=np.float64)
    return matrix.shape == (n, n) and bool(np.isfinite(matrix).all()) and invertible(matrix)


def _read_without_place(path: Path, header: _Header) -> sitk.Image:
    """Let ITK read a copy whose header says nothing of where the voxels lie."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        with path.open("rb") as source, copy.open("wb") as target:
            for field, line in header.lines.items():
                named = header.value(field) if field in _DATA_FILES else None
                if named is not None and (path.parent / named).is_file():
                    target.write(line.replace(named.encode("latin-1"), str((path.parent / named).absolute()).encode()))
                elif field not in _PLACES:
                    target.write(line)
            source.seek(header.size)
            shutil.copyfileobj(source, target)
        return sitk.ReadImage(str(copy))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan


def _check(path: Path, array: npt.NDArray[Any], affine: npt.NDArray[np.float64]) -> None:
    """Read back what was written, because ITK does not report a disk that fills up with the last bytes."""
    back = load(path, None, exact=True)
    values = back.array[None] if len(array) == 1 else np.moveaxis(back.array, -1, 0)
    same_values = np.array_equal(values, array, equal_nan=array.dtype.kind == "f")
    if not (same_values and np.allclose(back.affine, affine, rtol=1e-6, atol=1e-6 * max(spacing_of(affine)))):
        raise OSError("what was read back differs from what was written")


def _affine(frame: _Frame) -> npt.NDArray[np.float64]:
    """Voxel -> world in mm, or in what is no length; slowest axis first; (S, A, R) in 3D."""
    n = len(frame.spacing)
    affine = np.eye(n + 1)
    affine[:n, :n] = np.reshape(frame.direction, (n, n)) * frame.spacing
    affine[:n, n] = frame.origin
    affine[:n] *= np.reshape(frame.lengths or (1.0,) * n, (n, 1))
    return swap_lps_ras(reverse_axes(affine)) if n == 3 else reverse_axes(affine)


def _frame(affine: npt.NDArray[np.float64]) -> _Frame:
    """ITK's words for an affine: the inverse of `_affine`, without units."""
    n = len(affine) - 1
    itk = reverse_axes(swap_lps_ras(affine) if n == 3 else affine)
    spacing = spacing_of(itk)
    direction = itk[:n, :n] / spacing
    return _Frame(spacing, tuple(itk[:n, n].tolist()), tuple(direction.ravel().tolist()))
