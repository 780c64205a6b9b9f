"""Agreement of label maps, against sums over voxels that are slow and plain."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from napari_apprentice.agreement import Agreement, Match, agreement, differing_voxels
from napari_apprentice.types import LabelsError

shapes = arrays.array_shapes(min_dims=2, max_dims=3, max_side=6)
maps = shapes.flatmap(lambda shape: st.tuples(*[arrays.arrays(np.uint16, shape, elements=st.integers(0, 4))] * 2))


def by_hand(labels, truth, label):
    mine = labels == label
    shared = {int(t): int((mine & (truth == t)).sum()) for t in np.unique(truth[mine]) if t}
    if not shared:
        return Match(label, None, 0.0, 0.0, 0.0)
    true = min(t for t in shared if shared[t] == max(shared.values()))
    other = truth == true
    inner, outer = (mine & other).sum(), (mine | other).sum()
    held = mine.any(axis=tuple(range(1, mine.ndim)))
    return Match(label, true, 2 * inner / (mine.sum() + other.sum()), inner / outer, 2 * inner / (mine.sum() + other[held].sum()))


@given(maps)
def test_every_object_is_matched_as_a_sum_over_all_voxels_says(pair):
    labels, truth = pair
    found = agreement(labels, truth)
    expected = [by_hand(labels, truth, int(label)) for label in np.unique(labels) if label]
    for match, one in zip(found.matches, expected, strict=True):
        assert (match.label, match.truth) == (one.label, one.truth)
        np.testing.assert_allclose([match.dice, match.iou, match.slices_dice], [one.dice, one.iou, one.slices_dice])
    assert set(found.missed) == set(np.unique(truth).tolist()) - {0} - {match.truth for match in found.matches}


@given(maps)
def test_voxels_that_differ_are_counted(pair):
    labels, others = pair
    differs = labels != others
    count, first = differing_voxels(labels, others)
    assert count == differs.sum()
    assert first == (int(np.argwhere(differs)[0, 0]) if count else None)


def test_a_map_agrees_with_itself():
    labels = np.array([[0, 3, 3], [7, 7, 0]])
    assert agreement(labels, labels) == Agreement((Match(3, 3, 1.0, 1.0, 1.0), Match(7, 7, 1.0, 1.0, 1.0)), ())


def test_an_object_of_one_slice_is_right_in_that_slice_although_its_truth_goes_on():
    truth = np.ones((4, 3, 3), int)
    labels = truth.copy()
    labels[1:] = 0
    (match,) = agreement(labels, truth).matches
    assert (match.dice, match.iou, match.slices_dice) == (0.4, 0.25, 1.0)


def test_other_shapes_are_refused():
    for compare in (agreement, differing_voxels):
        with pytest.raises(LabelsError, match=r"\(3, 2\) arrived to compare with; expected \(2, 3\)"):
            compare(np.zeros((2, 3), int), np.zeros((3, 2), int))


def test_ids_may_be_as_large_as_their_type_holds():
    labels = np.array([[0, 1, 1], [2, 2, 3]], np.uint64)
    names = np.array([0, 7, 2**40, 2**63 + 5], np.uint64)
    plain, named = agreement(labels, labels[:, ::-1]), agreement(names[labels], names[labels[:, ::-1]])
    known = {None: None, **{i: int(name) for i, name in enumerate(names)}}
    assert [(one.label, one.truth) for one in named.matches] == [(known[one.label], known[one.truth]) for one in plain.matches]
    assert [(one.dice, one.iou, one.slices_dice) for one in named.matches] == [(m.dice, m.iou, m.slices_dice) for m in plain.matches]
