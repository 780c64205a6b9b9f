"""Folders of labelled images, and the sequence of objects that a user would segment in them.

::

    set/images/<case>.<ext>   set/labels/<case>.<ext>   set/dataset.toml

``dataset.toml`` says what one *object* is, always in one 2D image or one slice of a volume:

- ``objects = "id"``: every non-zero label value is one object;
- ``objects = "class"``: the whole mask of every class is one object;
- ``objects = "components"``: every 8-connected component of every class is one object.

``[classes]`` names the label values (``"1"``, or several at once: ``"1-6, 8"``, each still an object of its own); ``[targets]``, where
present, replaces the classes by named unions of label values. ``slice_axes`` names the axes of a volume to slice across (default
``"z"``), and objects smaller than ``min_area_px`` are skipped, as are those in slices that the image shows nothing in: constant ones.
Images and label maps are whatever `files` reads; other files beside them are passed over.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from napari_apprentice import files
from napari_apprentice.types import Image, ImageError, ImageSlice, Plane, ReadError, RecipeError

__all__ = ["LabelledSet", "ObjectRef", "open_set"]

Mask = npt.NDArray[np.bool_]

_EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)
_AXES = {"z": 0, "y": 1, "x": 2}
_KINDS = ("id", "class", "components")
_MOST_LABELS = 1 << 20


class ObjectRef(NamedTuple):
    """Names one object: a 2D mask in one slice.

    Attributes
    ----------
    case : the file's name without extension
    plane : the slice
    target : what it is, by the name of its target or class; "object" where every label value is an object
    id : label value; for a union of values the first of them; for components their number in the slice, from 1 in raster order
    """

    case: str
    plane: Plane
    target: str
    id: int


@dataclass(frozen=True, eq=False)
class LabelledSet:
    """A folder of images and their label maps. Keeps the current case in memory.

    Attributes
    ----------
    name : name of the folder
    folder : where it lies
    cases : names of the images without extension, sorted
    objects_are : "id", "class" or "components"
    targets : names of what is to be segmented, in the order of ``dataset.toml``, and the label values of each (none where ``objects_are``
        is "id")
    slice_axes : axes of a volume to slice across, in this order (0 = z, 1 = y, 2 = x)
    min_area_px : smaller objects are skipped
    modality, licence : as stated in ``dataset.toml``
    """

    name: str
    folder: Path
    cases: tuple[str, ...]
    objects_are: Literal["id", "class", "components"]
    targets: Mapping[str, tuple[int, ...]]
    slice_axes: tuple[int, ...] = (0,)
    min_area_px: int = 0
    modality: str = ""
    licence: str = ""
    _groups: Mapping[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict, repr=False)
    _files: Mapping[str, tuple[Path, Path]] = field(default_factory=dict, repr=False)
    _current: dict[str, tuple[Image, npt.NDArray[Any]]] = field(default_factory=dict, repr=False)
    _listed: dict[str, tuple[ObjectRef, ...]] = field(default_factory=dict, repr=False)

    def image(self, case: str) -> Image:
        """The image of a case.

        Raises
        ------
        RecipeError : there is no such case
        ReadError : a file cannot be read, or the label map lies on another grid than the image
        """
        return self._load(case)[0]

    def labels(self, case: str) -> npt.NDArray[Any]:
        """(S) integers, the label map of a case; errors as for `image`."""
        return self._load(case)[1]

    def objects(
        self, cases: str = "*", target: str | None = None, order: Literal["sorted"] | int = "sorted", limit: int | None = None
    ) -> tuple[ObjectRef, ...]:
        """The objects in the order in which they are to be segmented.

        Parameters
        ----------
        cases : glob pattern that the names of the cases have to match
        target : only this target; None for all
        order : "sorted" (cases by name, then slices, then targets as in ``targets``, then ids), or the seed of a permutation of that order
        limit : at most so many, spread evenly over the sorted order (whatever ``order`` says, so that all orders hold the same objects)

        Raises
        ------
        RecipeError : no case matches, the target is unknown, or nothing is left
        ReadError : as for `image`, of any of the cases
        """
        names = [case for case in self.cases if fnmatchcase(case, cases)]
        if not names:
            raise RecipeError(f"no case of {self.name} matches {cases!r}; its {len(self.cases)} cases are named like {self.cases[0]!r}")
        if target is not None and target not in self.targets:
            raise RecipeError(f"target {target!r} was asked for; {self.name} has {', '.join(self.targets)}")
        if limit is not None and limit < 1:
            raise RecipeError(f"a limit of {limit} objects arrived; expected at least 1")
        found = [ref for case in names for ref in self._list(case) if target in (None, ref.target)]
        if not found:
            raise RecipeError(
                f"{self.name} has no object of at least {self.min_area_px} pixels, in a slice with some contrast, "
                f"in the cases that match {cases!r}"
            )
        if limit is not None and limit < len(found):
            found = [found[i] for i in np.linspace(0, len(found) - 1, limit).round().astype(int)]
        if order != "sorted":
            found = [found[i] for i in np.random.default_rng(order).permutation(len(found))]
        return tuple(found)

    def truth(self, ref: ObjectRef) -> Mask:
        """(H, W) the true mask of an object.

        Raises
        ------
        RecipeError : the set has no such object
        """
        for number, mask in self._masks(_cut(self.labels(ref.case), ref.plane), ref.target):
            if number == ref.id:
                return mask
        raise RecipeError(f"{self.name} has no {ref.target!r} with id {ref.id} in {ref.case}, {ref.plane}")

    def slice(self, ref: ObjectRef) -> ImageSlice:
        """The pixels of the slice in which an object lies.

        Raises
        ------
        ImageError : the slice is constant or holds values that are not finite
        """
        # An image lives only until the next case is opened, so its identity cannot stand for its pixels.
        return replace(self.image(ref.case).slice(ref.plane), key=(str(self.folder), ref.case, ref.plane))

    def _load(self, case: str) -> tuple[Image, npt.NDArray[Any]]:
        if case not in self._files:
            raise RecipeError(f"case {case!r} was asked for; {self.name} has {len(self.cases)} cases named like {self.cases[0]!r}")
        if case not in self._current:
            picture, map_ = self._files[case]
            try:
                image = files.read(picture)
                labels = files.read_labels(map_, like=image)
            except ReadError as error:
                raise ReadError(f"case {case!r} of {self.name} cannot be used: {error}") from error
            self._current.clear()
            self._current[case] = image, labels
        return self._current[case]

    def _list(self, case: str) -> tuple[ObjectRef, ...]:
        """All objects of one case, slices first, then targets, then ids."""
        if case not in self._listed:
            image, labels = self._load(case)
            found: list[ObjectRef] = []
            for plane in self._planes(labels.shape):
                cut = _cut(labels, plane)
                refs = [ObjectRef(case, plane, target, number) for target in self.targets for number in self._ids(cut, target)]
                found += refs if refs and _has_contrast(image, plane) else []
            self._listed[case] = tuple(found)
        return self._listed[case]

    def _planes(self, shape: tuple[int, ...]) -> Iterator[Plane]:
        if len(shape) == 2:
            yield Plane(0, 0)
        else:
            yield from (Plane(axis, index) for axis in self.slice_axes for index in range(shape[axis]))

    def _ids(self, labels: npt.NDArray[Any], target: str) -> list[int]:
        """Ids of the objects of one (H, W) slice that are large enough."""
        areas = _areas(labels)
        if self.objects_are == "id":
            return [value for value, area in areas.items() if value > 0 and area >= max(self.min_area_px, 1)]
        if not any(areas.get(value, 0) for value in self.targets[target]):
            return []
        if self.objects_are == "class":
            sums = {group[0]: sum(areas.get(value, 0) for value in group) for group in self._groups[target]}
            return [number for number, area in sums.items() if area >= max(self.min_area_px, 1)]
        return [number for number, mask in self._masks(labels, target) if mask.sum() >= self.min_area_px]

    def _masks(self, labels: npt.NDArray[Any], target: str) -> Iterator[tuple[int, Mask]]:
        """Ids and (H, W) masks of all objects of one slice, small ones too."""
        if self.objects_are == "id":
            yield from ((value, labels == value) for value in _areas(labels) if value > 0)
        elif self.objects_are == "class":
            yield from ((group[0], np.isin(labels, group)) for group in self._groups[target])
        else:
            before = 0
            for group in self._groups[target]:
                components, count = ndimage.label(np.isin(labels, group), _EIGHT_CONNECTED)
                yield from ((before + number, components == number) for number in range(1, count + 1))
                before += count


def open_set(folder: Path | str) -> LabelledSet:
    """Open a folder laid out as described above; reads its ``dataset.toml`` and the names of its files only.

    Raises
    ------
    RecipeError : the folder is not laid out as expected; the sentence says what is missing
    """
    folder = Path(folder)
    description = _description(folder)
    kind = description.get("objects")
    if kind not in _KINDS:
        raise RecipeError(f"objects = {kind!r} arrived in {folder / 'dataset.toml'}; expected one of {', '.join(_KINDS)}")
    pairs = _pairs(folder)
    groups = {"object": ()} if kind == "id" else _read_groups(description, folder)
    return LabelledSet(
        name=folder.resolve().name,
        folder=folder,
        cases=tuple(sorted(pairs)),
        objects_are=kind,
        targets=MappingProxyType({name: tuple(sorted({v for group in parts for v in group})) for name, parts in groups.items()}),
        slice_axes=_read_axes(description.get("slice_axes", "z"), folder),
        min_area_px=_read_area(description.get("min_area_px", 0), folder),
        modality=str(description.get("modality", "")),
        licence=str(description.get("licence", "")),
        _groups=groups,
        _files=pairs,
    )


def _description(folder: Path) -> dict[str, Any]:
    path = folder / "dataset.toml"
    try:
        return tomllib.loads(path.read_text("utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        raise RecipeError(f"{folder} arrived as a data set; expected a folder with images/, labels/ and a dataset.toml") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise RecipeError(f"{path} cannot be read ({error}); expected a TOML file that describes the set") from error


def _pairs(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Image and label file of every case."""
    images, labels = (_stems(folder / kind) for kind in ("images", "labels"))
    missing = sorted(set(images) - set(labels))
    if missing:
        raise RecipeError(
            f"{images[missing[0]]} has no label map ({len(missing)} have none); expected one named alike in {folder / 'labels'}"
        )
    if not images:
        raise RecipeError(
            f"{folder / 'images'} holds no image; expected at least one in one of {', '.join(files.READABLE)}, "
            f"with a label map of the same name in labels/"
        )
    return {case: (images[case], labels[case]) for case in images}


def _stems(folder: Path) -> dict[str, Path]:
    """What is named as images are, by the name of its case."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.lower().endswith(files.READABLE) and not path.name.startswith("."):
            stem = files.stem(path)
            if stem in found:
                raise RecipeError(f"{found[stem].name} and {path.name} arrived in {folder}; expected one file for case {stem!r}")
            found[stem] = path
    return found


def _read_groups(description: dict[str, Any], folder: Path) -> dict[str, tuple[tuple[int, ...], ...]]:
    """For every target the tuples of label values that make up one object each."""
    groups: dict[str, tuple[tuple[int, ...], ...]] = {}
    for name, values in _read_table("targets", description, folder).items():
        if not (isinstance(values, list) and values and all(isinstance(v, int) and v > 0 for v in values)):
            raise RecipeError(f"target {name} = {values!r} arrived in {folder / 'dataset.toml'}; expected label values such as [1, 2]")
        groups[name] = (tuple(values),)
    if not groups:
        for key, name in _read_table("classes", description, folder).items():
            groups[str(name)] = groups.get(str(name), ()) + tuple((value,) for value in _read_values(key, folder))
    if not groups:
        raise RecipeError(f'{folder / "dataset.toml"} names no classes and no targets; expected a table [classes] with "1" = "lesion"')
    return groups


def _read_table(name: str, description: dict[str, Any], folder: Path) -> dict[str, Any]:
    table = description.get(name, {})
    if not isinstance(table, dict):
        raise RecipeError(f"{name} = {table!r} arrived in {folder / 'dataset.toml'}; expected a table [{name}]")
    return table


def _read_values(key: str, folder: Path) -> list[int]:
    """``"1-6, 8"`` -> 1, 2, 3, 4, 5, 6, 8."""
    values: list[int] = []
    for part in key.split(","):
        ends = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if ends is None or int(ends[1]) < 1 or int(ends[2] or ends[1]) < int(ends[1]):
            raise RecipeError(f'class "{key}" arrived in {folder / "dataset.toml"}; expected label values such as "1" or "1-6, 8"')
        values += range(int(ends[1]), int(ends[2] or ends[1]) + 1)
    return values


def _read_axes(text: Any, folder: Path) -> tuple[int, ...]:
    """``"z, y, x: whatever else is said"`` -> 0, 1, 2."""
    names = [name.strip() for name in str(text).split(":")[0].split(",")]
    if not all(name in _AXES for name in names):
        raise RecipeError(f'slice_axes = {text!r} arrived in {folder / "dataset.toml"}; expected axes such as "z" or "z, y, x"')
    return tuple(_AXES[name] for name in names)


def _read_area(value: Any, folder: Path) -> int:
    if not isinstance(value, int) or value < 0:
        raise RecipeError(f"min_area_px = {value!r} arrived in {folder / 'dataset.toml'}; expected a whole number of pixels")
    return value


def _cut(labels: npt.NDArray[Any], plane: Plane) -> npt.NDArray[Any]:
    """The (H, W) labels of one plane."""
    cut: npt.NDArray[Any] = labels[...] if labels.ndim == 2 else labels[(slice(None),) * plane.axis + (plane.index,)]
    return cut


def _has_contrast(image: Image, plane: Plane) -> bool:
    try:
        image.slice(plane)
    except ImageError:
        return False
    return True


def _areas(labels: npt.NDArray[Any]) -> dict[int, int]:
    """Number of pixels of every label value, by value."""
    if labels.dtype.kind == "u" and int(labels.max(initial=0)) < _MOST_LABELS:
        counts = np.bincount(labels.ravel())
        values = np.flatnonzero(counts)
        return dict(zip(values.tolist(), counts[values].tolist(), strict=True))
    values, counts = np.unique(labels, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))
