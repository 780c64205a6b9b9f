"""What of an object's slices is the user's, and what may be written: the ground that propagation walks on."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from napari_apprentice.history import State
from napari_apprentice.labelmap import LabelMap, Patch, slabs
from napari_apprentice.objects import presence
from napari_apprentice.origins import Origin
from napari_apprentice.painting import crossing_lines
from napari_apprentice.shapes import bounding_box
from napari_apprentice.types import Box, InputError, Plane, Prediction, SessionError

__all__ = ["DOUBTFUL", "Doubt", "Ground", "Slice", "accepted_slices", "joined", "slices", "unapproved", "worths"]

DOUBTFUL = 0.15
"""Expected error (1 - IoU) above which a carried slice is doubtful."""


Mask = npt.NDArray[np.bool_]


class Slice(IntEnum):
    """What a slice of an object is."""

    EMPTY = 0
    """There is nothing of it, and nobody said so."""
    ACCEPTED = 1
    """It is the user's: clicked or painted in, approved, or there before."""
    CARRIED = 2
    """Propagation filled it."""
    DOUBTFUL = 3
    """Propagation filled it or ended before it, and is not sure of that: see `DOUBTFUL`."""


class Doubt(NamedTuple):
    """A slice that propagation filled or ended before: of which object, and the error (1 - IoU) that is expected there."""

    plane: Plane
    label: int
    error: float


def slices(labels: LabelMap, origin: Origin, label: int, axis: int) -> tuple[Slice, ...]:
    """What the slices of an object across ``axis`` are, in order."""
    found = [Slice.ACCEPTED if there else Slice.EMPTY for there in presence(labels, label)[axis]]
    for plane in origin.own:
        if plane.axis == axis:
            found[plane.index] = Slice.ACCEPTED
    for plane, error in origin.carried.items():
        if plane.axis == axis:
            sure = Slice.CARRIED if found[plane.index] else Slice.EMPTY
            found[plane.index] = Slice.DOUBTFUL if error > DOUBTFUL else sure
    return tuple(found)


def unapproved(origin: Origin, label: int, planes: Sequence[Plane], shape: tuple[int, ...]) -> tuple[Plane, ...]:
    """Which of ``planes`` in an image of ``shape``, by default of all that propagation filled, are not the user's yet; sorted.

    Raises
    ------
    InputError : something else than planes arrived
    SessionError : there is no such plane, or nothing was carried and no plane is named
    """
    try:
        named = {Plane(operator.index(axis), operator.index(index)) for axis, index in planes}
    except (TypeError, ValueError) as error:
        raise InputError(f"{planes} arrived to approve; expected planes, such as Plane(0, 14)") from error
    for axis, index in named:
        if len(shape) != 3 or axis not in range(3) or not 0 <= index < shape[axis]:
            raise SessionError(f"plane {index} across axis {axis} arrived; expected one of an image of shape {shape}")
    if not named and not origin.carried:
        raise SessionError(f"object {label} has no slice that was carried; expected one to approve")
    return tuple(sorted((named or {*origin.carried}) - origin.own))


def accepted_slices(labels: LabelMap, origin: Origin, label: int, axis: int) -> dict[int, Mask]:
    """Index and (H, W) mask of the slices that are the user's: clicked or painted in, or there before, however empty.

    What was propagated is nobody's, and so are the lines in which planes across other axes cut a slice.
    """
    known = (*origin.own, *origin.carried)
    accepted = {}
    box = labels.box_of(label)
    held = range(box[axis].start, box[axis].stop) if box is not None else ()
    for index in sorted({*held, *(plane.index for plane in origin.own if plane.axis == axis)}):
        plane = Plane(axis, index)
        mask = labels.plane(plane) == label
        if plane in origin.own:
            accepted[index] = mask
        elif plane not in origin.carried and mask.any():
            rest = mask.copy()
            for line in crossing_lines(known, plane):
                rest[line] = False
            if rest.any():
                accepted[index] = mask
    return accepted


def joined(labels: LabelMap, state: State, label: int, into: int) -> Origin:
    """Of two objects that become one: an accepted slice of either stays one, even where the other was carried through it."""
    one, other = state.origin(into), state.origin(label)
    accepted: set[Plane] = set()
    for origin, i, carried in ((one, into, other.carried), (other, label, one.carried)):
        for axis in {plane.axis for plane in carried}:
            accepted |= {Plane(axis, index) for index in accepted_slices(labels, origin, i, axis)} & carried.keys()
    return one.joined(other).taken(accepted)


def worths(labels: LabelMap, origin: Origin, label: int, axis: int) -> dict[int, float]:
    """Of every carried slice across an axis, in how many voxels a correction there is expected to help.

    It takes away the slice's own expected error, and some of that of the slices that were carried from the same accepted ones: an
    error grows with the distance from the nearest accepted slice, and so falls with it. Of many slices that are wrong, the one in the
    middle of them is worth most. Where propagation ended, the error is one of the nearest slice that is not empty.
    """
    errors = {plane.index: error for plane, error in origin.carried.items() if plane.axis == axis}
    held = accepted_slices(labels, origin, label, axis)
    accepted = np.array(sorted(held))
    if not errors or not len(accepted):
        return dict.fromkeys(errors, 0.0)
    areas = {index: int((labels.plane(Plane(axis, index)) == label).sum()) for index in errors} | {i: int(m.sum()) for i, m in held.items()}
    where = np.array(sorted(errors))
    away = np.abs(where[:, None] - accepted).min(axis=1)
    stretch = np.searchsorted(accepted, where)
    full = [i for i in sorted(areas) if areas[i]]
    area = [areas[i] or areas[min(full, key=lambda j: abs(i - j))] for i in where.tolist()] if full else [0] * len(where)
    wrong = np.array([errors[i] for i in where.tolist()]) * np.array(area)
    less = 1 - np.minimum(np.abs(where[:, None] - where) / away, 1.0)  # [corrected, other]
    gains = np.where(stretch[:, None] == stretch, less * wrong, 0.0).sum(axis=1)
    return dict(zip(where.tolist(), gains.tolist(), strict=True))


class Ground:
    """What may be written of one object across one axis."""

    def __init__(self, labels: LabelMap, origin: Origin, label: int, axis: int) -> None:
        self._labels, self._origin, self._label = labels, origin, label
        self.axis = axis

    def open(self, index: int) -> Mask:
        """(H, W) voxels of a slice that are nobody's or the object's."""
        return np.isin(self._labels.plane(Plane(self.axis, index)), (0, self._label))

    def free(self, index: int) -> Mask:
        """The open ones through which no other slice goes that the user accepted."""
        free = self.open(index)
        for line in crossing_lines(self._origin.own, Plane(self.axis, index)):
            free[line] = False
        return free

    def patch(self, answers: Mapping[int, Prediction]) -> Patch | None:
        """What changes when the answers replace whatever was carried across this axis before."""
        earlier = {plane.index for plane in self._origin.filled if plane.axis == self.axis}
        boxes = {}
        for index in {*answers, *earlier}:
            differs = self._renewed(index, answers) != self._labels.plane(Plane(self.axis, index))
            if differs.any():
                boxes[index] = bounding_box(differs)
        if not boxes:
            return None
        box = Box(*(edge(sides) for edge, sides in zip((min, min, max, max), zip(*boxes.values(), strict=True), strict=True)))
        region = list(box.slices)
        region.insert(self.axis, slice(min(boxes), max(boxes) + 1))
        return Patch.of(self._changes(tuple(region), boxes, answers))

    def _changes(
        self, region: tuple[slice, ...], indices: Collection[int], answers: Mapping[int, Prediction]
    ) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any], list[int]]]:
        """Old and new values of slices in a region, as many at once as are not too large, and the corner of each such part."""
        inside = tuple(side for axis, side in enumerate(region) if axis != self.axis)
        for slab in slabs(region, self.axis):
            here = self._labels.array[slab]
            new = here.astype(np.result_type(here, np.min_scalar_type(self._label)))
            for index in indices:
                if slab[self.axis].start <= index < slab[self.axis].stop:
                    np.moveaxis(new, self.axis, 0)[index - slab[self.axis].start] = self._renewed(index, answers)[inside]
            yield here, new, [side.start for side in slab]

    def _renewed(self, index: int, answers: Mapping[int, Prediction]) -> npt.NDArray[Any]:
        """(H, W) labels of a slice with its answer, or without any."""
        here, free = self._labels.plane(Plane(self.axis, index)), self.free(index)
        new = np.where(free, 0, here).astype(np.result_type(here, np.min_scalar_type(self._label)))
        if index in answers:
            new[free & answers[index].mask] = self._label
        return new
