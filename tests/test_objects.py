"""Parts partition an object, each around its seed; where an object lies is what a plain look says."""

from __future__ import annotations

from contextlib import nullcontext, suppress

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from napari_apprentice import labelmap as labelmap_module
from napari_apprentice import objects
from napari_apprentice.fakes import DiskSegmenter, FakePolicy
from napari_apprentice.journal import Journal, read_journal, replay_labels
from napari_apprentice.labelmap import LabelMap
from napari_apprentice.objects import parts, presence, remainder, taken_apart
from napari_apprentice.replay import replay
from napari_apprentice.session import Session
from napari_apprentice.types import Click, Image, Plane, SessionError

shapes = hnp.array_shapes(min_dims=2, max_dims=3, max_side=7)
ROWS, COLS = np.mgrid[:30, :50]


@settings(max_examples=60)
@given(st.data())
def test_parts_partition_the_mask_around_their_seeds(data):
    mask = data.draw(hnp.arrays(bool, shapes).filter(np.any))
    voxels = [tuple(map(int, voxel)) for voxel in np.argwhere(mask)]
    seeds = data.draw(st.lists(st.sampled_from(voxels), min_size=1, max_size=4, unique=True))
    spacing = tuple(data.draw(st.sampled_from([0.5, 1.0, 4.0])) for _ in mask.shape)
    owner = parts(mask, seeds, spacing)
    assert ((owner > 0) == mask).all()
    assert [owner[seed] for seed in seeds] == list(range(1, len(seeds) + 1))
    assert owner.max() == len(seeds)


@settings(max_examples=60)
@given(st.data())
def test_presence_and_renumbering_are_what_a_plain_look_says(data):
    labels = data.draw(hnp.arrays(np.uint8, shapes, elements=st.sampled_from([0, 1, 2, 255])))
    label, to = data.draw(st.sampled_from([1, 2, 3])), data.draw(st.sampled_from([0, 7, 70000]))
    known, here = LabelMap(labels.shape, labels), labels == label
    for axis, along in enumerate(presence(known, label)):
        assert (along == here.any(axis=tuple(a for a in range(labels.ndim) if a != axis))).all()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(labelmap_module, "_TILE_VOXELS", data.draw(st.sampled_from([1, 6, 2**24])))
        patch = known.renumbering(label, to)
    assert (patch is None) == (not here.any())
    if patch is not None:
        known.widen(patch.dtype)
        known.write(patch.after)
    assert (known.array == np.where(here, to, labels.astype(int))).all()


def test_two_touching_disks_come_apart_at_the_neck():
    first, second = ((ROWS - 15) ** 2 + (COLS - column) ** 2 <= 100 for column in (14, 32))
    owner = parts(first | second, [(15, 12), (12, 36)], (1.0, 1.0))
    assert (owner[first & (COLS < 22)] == 1).all()
    assert (owner[second & (COLS > 24)] == 2).all()


def test_a_piece_without_a_seed_goes_to_the_part_that_is_nearest_in_millimetres():
    mask = np.zeros((9, 40), bool)
    mask[0, 0], mask[8, 10], mask[0, 12] = True, True, True
    assert parts(mask, [(0, 0), (8, 10)], (1.0, 1.0))[0, 12] == 2
    assert parts(mask, [(0, 0), (8, 10)], (10.0, 1.0))[0, 12] == 1


@pytest.mark.parametrize(
    ("seeds", "message"),
    [([(1, 1)], "two or more parts"), ([(1, 1), (0, 0)], "voxels of that object only"), ([(1, 1), (9, 9)], "voxels of that object only")],
)
def test_a_split_that_makes_no_sense_is_refused(seeds, message):
    labels = np.zeros((4, 4), np.uint8)
    labels[1, 1:3] = 5
    with pytest.raises(SessionError, match=message):
        taken_apart(LabelMap(labels.shape, labels), 5, seeds, range(6, 5 + len(seeds)), (1.0, 1.0))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_split_is_what_its_parts_say_however_it_is_cut(data):
    """Each part holds its seed, together they are the object, other objects stay, and what is left is where it is said to be."""
    shape = data.draw(shapes)
    labels = data.draw(hnp.arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 1, 2])))
    held = [tuple(int(v) for v in voxel) for voxel in np.argwhere(labels == 1)]
    assume(len(held) > 1)
    seeds = data.draw(st.lists(st.sampled_from(held), min_size=2, max_size=3, unique=True))
    known = LabelMap(shape, labels)
    spacing = (2.0, 1.0, 0.5)[: len(shape)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(labelmap_module, "_TILE_VOXELS", data.draw(st.sampled_from([1, 6, 2**24])))
        at_once = data.draw(st.sampled_from([4, 2**26]))
        patched.setattr(objects, "_SPLIT_VOXELS", at_once)
        patch = None
        with suppress(SessionError) if at_once == 4 else nullcontext():
            patch = taken_apart(known, 1, seeds, range(300, 299 + len(seeds)), spacing)
    assume(patch is not None)
    rest = remainder(known, 1, patch)
    known.widen(patch.dtype)
    known.write(patch.after)
    after = known.array
    assert [int(after[seed]) for seed in seeds] == [1, *range(300, 299 + len(seeds))]
    assert (np.isin(after, [1, *range(300, 299 + len(seeds))]) == (labels == 1)).all()
    assert ((after == 2) == (labels == 2)).all()
    assert rest == known.box_of(1)
    if at_once > 4:
        owner = parts(labels == 1, seeds, spacing)
        np.testing.assert_array_equal(np.choose(owner, [after, 1, 300, 301][: len(seeds) + 1]), after)


def test_what_was_done_to_whole_objects_is_replayed_with_the_same_model_and_survives_another_one(tmp_path):
    image = Image(np.random.default_rng(0).random((1, 4, 30, 40)), name="volume")
    session = Session(image, DiskSegmenter(4.0), FakePolicy(), journal=Journal.create(tmp_path, image))
    for column in (8, 12, 30):
        session.add(Click((1, 15, column)))
    session.split(1, [(1, 15, 5), (1, 15, 30), (1, 15, 15)])
    session.accept()
    session.name(2, "cell", "#123456")
    session.relabel(3, 9)
    session.approve(Plane(0, 2), label=9)
    session.merge(9, 2)
    session.delete(1)
    session.close()
    assert (replay_labels(tmp_path) == session.labels).all()
    events = read_journal(tmp_path)[1]
    again = Session(image, DiskSegmenter(4.0), FakePolicy())
    replay(again, events)
    assert (again.labels == session.labels).all()
    assert (again.finished, again.legend, again.label) == (session.finished, session.legend, session.label)
    other = Session(image, DiskSegmenter(0.0), FakePolicy())  # finds the clicked voxels only
    replay(other, events)
    assert other.legend == session.legend
