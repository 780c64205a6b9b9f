"""Whole objects found, deleted, given other ids, merged and split: pure functions that say what would change.

An action upon a whole object gives the next state of the session and the change of its labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from napari_apprentice.history import State
from napari_apprentice.labelmap import LARGEST_ID, LabelMap, Patch
from napari_apprentice.origins import Origin
from napari_apprentice.types import SessionError

__all__ = ["deletion", "fresh_ids", "merger", "parts", "presence", "relabelling", "remainder", "splitting", "taken_apart"]

Mask = npt.NDArray[np.bool_]

_SPLIT_VOXELS = 2**26
"""How many voxels are parted at once."""


def presence(labels: LabelMap, label: int) -> tuple[Mask, ...]:
    """For every axis, which of its slices hold some of an object: one bool array of the axis' length each."""
    found = tuple(np.zeros(size, dtype=bool) for size in labels.shape)
    for region, values in labels.pieces(label):
        mask = values == label
        for axis, side in enumerate(region):
            found[axis][side] |= mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis))
    return found


def fresh_ids(labels: LabelMap, state: State, count: int = 1, patch: Patch | None = None) -> list[int]:
    """The next ids above all that are in use or open; where these would be too large, the lowest that nothing has.

    ``patch`` is a change of the labels that is about to be made.
    """
    first = state.next_id
    if first + count - 1 <= LARGEST_ID:
        return list(range(first, first + count))
    changed = () if patch is None else patch.ids
    taken = {state.label, *labels.ids(), *changed, *state.finished, *state.origins, *state.legend.names}
    return list(islice((i for i in range(1, LARGEST_ID + 1) if i not in taken), count))


def deletion(labels: LabelMap, state: State, label: int) -> tuple[State, Patch | None]:
    """Without an object; SessionError if it has neither voxels nor clicks."""
    patch = labels.renumbering(label, 0)
    if patch is None and not (label == state.label and state.clicks):
        raise _missing(label)
    return state.deleted(label), patch


def relabelling(labels: LabelMap, state: State, label: int, to: int) -> tuple[State, Patch]:
    """With another id for an object; SessionError if it has no voxels, or the other id has."""
    patch = labels.renumbering(label, to)
    if patch is None:
        raise _missing(label)
    if labels.layers_with(to) is not None or (to == state.label and state.clicks):
        raise SessionError(f"id {to} was asked for, but there is an object {to} already; expected a free one (or merge the two)")
    return state.relabelled(label, to), patch


def merger(labels: LabelMap, state: State, label: int, into: int, origin: Origin) -> tuple[State, Patch]:
    """With an object as a part of another one, of which ``origin`` is true then; SessionError if one of them has no voxels."""
    patch = labels.renumbering(label, into)
    if patch is None or labels.layers_with(into) is None:
        raise _missing(label if patch is None else into)
    return state.merged(label, into, origin), patch


def splitting(
    labels: LabelMap, state: State, label: int, seeds: Sequence[tuple[int, ...]], spacing: tuple[float, ...]
) -> tuple[State, Patch]:
    """With an object in parts, see `taken_apart`: that of the first seed keeps the id, the others get new ones in order."""
    patch = taken_apart(labels, label, seeds, fresh_ids(labels, state, len(seeds) - 1), spacing)
    assert patch is not None
    return state.split(label, patch, remainder(labels, label, patch)), patch


def remainder(labels: LabelMap, label: int, patch: Patch) -> tuple[slice, ...]:
    """The smallest box that holds what ``patch`` leaves of an object, of which it changes nothing but some voxels."""
    left = [np.zeros(size, np.int64) for size in labels.shape]
    gone = ((tile.region, (tile.before == label) & (tile.after != label)) for tile in patch.tiles)
    for sign, pieces in ((1, ((region, values == label) for region, values in labels.pieces(label))), (-1, gone)):
        for region, mask in pieces:
            for axis, side in enumerate(region):
                left[axis][side] += sign * np.count_nonzero(mask, axis=tuple(a for a in range(mask.ndim) if a != axis))
    held = [np.flatnonzero(count) for count in left]
    return tuple(slice(int(along[0]), int(along[-1]) + 1) for along in held)


def _missing(label: int) -> SessionError:
    return SessionError(f"object {label} was asked for, but it has no voxels; expected one that is there")


def taken_apart(
    labels: LabelMap, label: int, seeds: Sequence[tuple[int, ...]], ids: Sequence[int], spacing: tuple[float, ...]
) -> Patch | None:
    """What changes when an object is split into one part for every seed.

    Where the box around the object is too large for memory, the border between the parts runs along cubes of some voxels a side.

    Parameters
    ----------
    seeds : a voxel of the object for every part
    ids : of the parts but the first, which keeps ``label``
    spacing : of the voxels

    Raises
    ------
    SessionError : there are fewer than two seeds, or one lies outside of the object, or two in one of those cubes
    """
    if len(set(seeds)) < 2:
        raise SessionError(f"a split of object {label} at {len(set(seeds))} voxel arrived; expected a click for each of two or more parts")
    shape = labels.shape
    for seed in seeds:
        inside = len(seed) == len(shape) and all(0 <= v < size for v, size in zip(seed, shape, strict=True))
        if not inside or int(labels.array[tuple(seed)]) != label:
            raise SessionError(f"a split of object {label} at voxel {tuple(seed)} arrived; expected voxels of that object only")
    box = labels.box_of(label)
    assert box is not None
    corner = np.array([side.start for side in box])
    sides = np.array([side.stop for side in box]) - corner
    coarse = math.ceil((math.prod(sides.tolist()) / _SPLIT_VOXELS) ** (1 / len(sides)))
    mask = np.zeros(-(-sides // coarse), bool)
    for region, values in labels.pieces(label):
        mask[_within(np.nonzero(values == label), region, corner, coarse)] = True
    markers = [tuple(((np.array(seed) - corner) // coarse).tolist()) for seed in seeds]
    if len(set(markers)) < len(markers):
        raise SessionError(
            f"a split of object {label} at voxels next to each other arrived; expected {coarse} or more between them, as it is so large"
        )
    owner = parts(mask, markers, tuple(coarse * length for length in spacing))
    return Patch.of(_owned(labels, label, owner, np.array([label, label, *ids]), corner, coarse))


def _within(
    voxels: tuple[npt.NDArray[Any], ...], region: tuple[slice, ...], corner: npt.NDArray[Any], coarse: int
) -> tuple[npt.NDArray[Any], ...]:
    """Where voxels of a region lie on a grid of cubes of ``coarse`` voxels a side that begins at ``corner``."""
    return tuple((along + side.start - first) // coarse for along, side, first in zip(voxels, region, corner, strict=True))


def _owned(
    labels: LabelMap, label: int, owner: npt.NDArray[Any], ids: npt.NDArray[Any], corner: npt.NDArray[Any], coarse: int
) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any], list[int]]]:
    """Old and new values of every piece that holds some of an object whose parts get ``ids``, and where the piece begins."""
    for region, here in labels.pieces_of(label):
        held = np.nonzero(here == label)
        new = here.astype(np.result_type(here, np.min_scalar_type(int(ids.max()))))
        new[held] = ids[owner[_within(held, region, corner, coarse)]]
        yield here, new, [side.start for side in region]


def parts(mask: Mask, seeds: Sequence[tuple[int, ...]], spacing: tuple[float, ...]) -> npt.NDArray[np.int32]:
    """The part, counted from 1, that each voxel of ``mask`` belongs to; 0 outside of it.

    The watershed of the distance to the contour, flooded from one seed a part (Beucher & Lantuéjoul 1979); pieces without a seed go to
    the part that is nearest.
    """
    from skimage.segmentation import watershed  # which takes a tenth of a second to import, and few ever need

    markers = np.zeros(mask.shape, np.int32)
    for number, seed in enumerate(seeds, start=1):
        markers[seed] = number
    depth = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=spacing)[(slice(1, -1),) * mask.ndim]
    owner: npt.NDArray[Any] = watershed(-depth, markers, mask=mask)
    if (left := mask & (owner == 0)).any():
        nearest = ndimage.distance_transform_edt(owner == 0, sampling=spacing, return_distances=False, return_indices=True)
        owner[left] = owner[tuple(nearest)][left]
    return owner.astype(np.int32)
