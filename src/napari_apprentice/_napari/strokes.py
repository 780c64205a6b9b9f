"""Hand painting: what napari's brush, bucket, polygon and eraser changed, as a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Stroke"]


@dataclass(frozen=True, eq=False)
class Stroke:
    """One finished stroke.

    Attributes
    ----------
    region : n slices, the box that holds the stroke
    painted : bool array of the box, True where something was painted
    before, after : integer arrays of the box, the labels there; meaningless where nothing was painted
    """

    region: tuple[slice, ...]
    painted: npt.NDArray[np.bool_]
    before: npt.NDArray[np.int64]
    after: npt.NDArray[np.int64]

    def over(self, labels: npt.NDArray[Any], protected: Sequence[int] = ()) -> npt.NDArray[Any]:
        """What the box looks like after the stroke, on top of ``labels`` ((S) array, not changed).

        napari itself keeps the brush off other labels if the layer is set to preserve them, so whoever painted over one
        meant to. ``protected`` labels that came to lie under the stroke later, from an answer that was still on its way,
        stay.
        """
        box = np.array(labels[self.region])
        painted = self.painted & ((box == self.before) | ~np.isin(box, protected))
        top = int(self.after[painted].max(initial=0))
        box = box.astype(np.result_type(box, np.min_scalar_type(top)), copy=False)
        box[painted] = self.after[painted]
        return box

    @classmethod
    def from_history(cls, item: Sequence[Any]) -> Stroke:
        """The stroke of one history item, the value of a labels layer's ``paint`` event.

        napari emits two kinds of atoms: a box with a mask and one new label (brush, bucket, polygon), and
        ``(indices, old values, new values)`` with one index array per axis (``data_setitem``). The event may come before
        or after the array is written, so the layer's data say nothing certain: only the atoms do.
        """
        boxes = [_box_of(atom) for atom in item]
        sides = list(zip(*boxes, strict=True))
        origin = [min(side.start for side in along) for along in sides]
        region = tuple(slice(first, max(side.stop for side in along)) for first, along in zip(origin, sides, strict=True))
        shape = tuple(side.stop - side.start for side in region)
        painted = np.zeros(shape, dtype=bool)
        before, after = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for atom in item:
            where, old, new = _voxels(atom, origin)
            first_time = ~painted[where]
            before[tuple(index[first_time] for index in where)] = np.broadcast_to(old, first_time.shape)[first_time]
            after[where] = new
            painted[where] = True
        return cls(region, painted, before, after)


def _box_of(atom: Any) -> tuple[slice, ...]:
    """The box of one atom of napari's history."""
    if hasattr(atom, "slice_key"):
        return tuple(slice(int(side.start), int(side.stop)) for side in atom.slice_key)
    return tuple(slice(int(np.min(index)), int(np.max(index)) + 1) for index in atom[0])


def _voxels(atom: Any, origin: Sequence[int]) -> tuple[tuple[npt.NDArray[np.intp], ...], Any, Any]:
    """Indices relative to ``origin`` of an atom's voxels, one array per axis, with the old and the new labels there."""
    if not hasattr(atom, "slice_key"):
        indices, old, new = atom
        return tuple(np.asarray(index) - first for index, first in zip(indices, origin, strict=True)), old, new
    box = _box_of(atom)
    mask = np.ones([side.stop - side.start for side in box], dtype=bool) if atom.mask is None else atom.mask
    within = np.nonzero(mask)
    where = tuple(index + side.start - first for index, side, first in zip(within, box, origin, strict=True))
    return where, np.ravel(atom.old_values), atom.new_value
