"""How far two label maps agree: objects with a truth, by Dice and IoU, or voxel by voxel.

Maps are gone through layer by layer of the first axis, so that neither has to fit into memory. With A and B the voxels of an object in
one map and the other, Dice is 2|A ∩ B| / (|A| + |B|) and IoU is |A ∩ B| / |A ∪ B|.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from napari_apprentice.types import LabelsError

__all__ = ["Agreement", "Match", "agreement", "differing_voxels"]


@dataclass(frozen=True)
class Match:
    """An object, and the object of the truth that it shares the most voxels with.

    Attributes
    ----------
    label : its id
    truth : id of the other; None where it shares a voxel with none
    dice, iou : of all voxels of both
    slices_dice : Dice within the layers of the first axis that hold some of the object: what was worked on, where the rest of the
        volume was left alone
    """

    label: int
    truth: int | None
    dice: float
    iou: float
    slices_dice: float


@dataclass(frozen=True)
class Agreement:
    """All objects of a label map against a truth.

    Attributes
    ----------
    matches : of every object, by ascending id
    missed : ids of the truth that no object was matched with, ascending
    """

    matches: tuple[Match, ...]
    missed: tuple[int, ...]


def agreement(labels: Any, truth: Any) -> Agreement:
    """Compare objects with a truth.

    Parameters
    ----------
    labels, truth : (S) ids, 0 is background: arrays, or anything that slices to one (dask, zarr)

    Raises
    ------
    LabelsError : they have different shapes
    """
    _check(labels, truth)
    layers = [_overlaps(labels[i : i + 1], truth[i : i + 1]) for i in range(len(labels))]
    both: Counter[tuple[int, int]] = Counter()
    for layer in layers:
        both.update(layer)
    sizes, true_sizes = _sizes(both, 0), _sizes(both, 1)
    shared: dict[int, dict[int, int]] = {label: {} for label in sorted(sizes)}
    for (label, true), count in both.items():
        if label and true:
            shared[label][true] = count
    partners = {label: max(counts, key=lambda true: (counts[true], -true)) for label, counts in shared.items() if counts}
    beside: Counter[int] = Counter()  # voxels of the partner in the layers that hold some of the object
    for layer in layers:
        true_here = _sizes(layer, 1)
        for label in _sizes(layer, 0):
            beside[label] += true_here[partners.get(label, 0)]
    matches = tuple(
        _match(label, partners[label], counts[partners[label]], sizes, true_sizes, beside) if counts else Match(label, None, 0.0, 0.0, 0.0)
        for label, counts in shared.items()
    )
    return Agreement(matches, tuple(sorted(set(true_sizes) - set(partners.values()))))


def differing_voxels(labels: Any, others: Any) -> tuple[int, int | None]:
    """How many voxels of two (S) label maps differ, and the first layer of the first axis in which some do; None for nowhere.

    Raises
    ------
    LabelsError : they have different shapes
    """
    _check(labels, others)
    count, first = 0, None
    for i in range(labels.shape[0]):
        here = int((np.asarray(labels[i]) != np.asarray(others[i])).sum())
        first = i if here and first is None else first
        count += here
    return count, first


def _check(labels: Any, others: Any) -> None:
    if tuple(labels.shape) != tuple(others.shape):
        raise LabelsError(f"labels of shape {tuple(others.shape)} arrived to compare with; expected {tuple(labels.shape)}")


def _overlaps(part: Any, true_part: Any) -> Counter[tuple[int, int]]:
    """Number of voxels that have an id in one map and an id in the other; those that are background in both are left out."""
    labels, truth = np.asarray(part), np.asarray(true_part)
    there = (labels != 0) | (truth != 0)
    labels, truth = labels[there], truth[there]
    ids, true_ids = np.unique(labels), np.unique(truth)
    width = max(len(true_ids), 1)
    codes, counts = np.unique(np.searchsorted(ids, labels) * width + np.searchsorted(true_ids, truth), return_counts=True)
    pairs = zip(ids[codes // width].tolist(), true_ids[codes % width].tolist(), counts.tolist(), strict=True)
    return Counter({(int(a), int(b)): count for a, b, count in pairs})


def _sizes(both: Counter[tuple[int, int]], side: int) -> Counter[int]:
    """Voxels of every object of one of the maps."""
    sizes: Counter[int] = Counter()
    for pair, count in both.items():
        if pair[side]:
            sizes[pair[side]] += count
    return sizes


def _match(label: int, true: int, inner: int, sizes: Counter[int], true_sizes: Counter[int], beside: Counter[int]) -> Match:
    outer = sizes[label] + true_sizes[true]
    return Match(label, true, 2 * inner / outer, inner / (outer - inner), 2 * inner / (sizes[label] + beside[label]))
