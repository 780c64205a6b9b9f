"""The painting rules against a voxel-by-voxel oracle, and one example of each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from napari_apprentice.fakes import DiskSegmenter, FakePolicy
from napari_apprentice.history import State
from napari_apprentice.labelmap import LabelMap
from napari_apprentice.painting import only_crossed, previous_answer, repainting
from napari_apprentice.session import Session
from napari_apprentice.types import Box, Click, Image, Plane, Prediction

SHAPE = (4, 5, 6)


def answer_of(mask: np.ndarray) -> Prediction:
    """Logits in the bounding box of ``mask`` only."""
    if not mask.any():
        return Prediction(np.zeros((0, 0), np.float32), Box(0, 0, 0, 0), mask.shape)
    rows, cols = ndimage.find_objects(mask.astype(int))[0]
    box = Box(rows.start, cols.start, rows.stop, cols.stop)
    return Prediction(np.where(mask[box.slices], 1.5, -1.5).astype(np.float32), box, mask.shape, view=box, score=0.5)


def in_plane_shape(axis: int) -> tuple[int, int]:
    return tuple(s for a, s in enumerate(SHAPE) if a != axis)


def painted(labels: LabelMap, state: State, click: Click, mask: np.ndarray) -> np.ndarray:
    after = labels.array.astype(np.uint16)
    if patch := repainting(labels, state, click, answer_of(mask)):
        for region, values in patch.after:
            after[region] = values
    return after


def plain(labels: np.ndarray, state: State, click: Click, mask: np.ndarray) -> np.ndarray:
    """The rules in words, voxel by voxel."""
    plane, after = click.plane, labels.astype(np.uint16)
    here = np.take(labels, plane.index, plane.axis) == state.label
    pieces = ndimage.label(here, np.ones((3, 3)))[0]
    hit = pieces[click.in_plane.voxel] if not click.positive else 0
    for voxel in np.ndindex(SHAPE):
        if voxel[plane.axis] != plane.index:
            continue
        pixel = tuple(v for a, v in enumerate(voxel) if a != plane.axis)
        crossed = any(other.axis != plane.axis and voxel[other.axis] == other.index for other in state.predictions)
        mine = state.predictions[plane].mask[pixel] if plane in state.predictions else not crossed
        if after[voxel] == state.label and (mine or (hit and pieces[pixel] == hit)):
            after[voxel] = 0
        if mask[pixel] and after[voxel] in (0, state.label):
            after[voxel] = state.label
    return after


@st.composite
def situations(draw):
    label = draw(st.sampled_from([2, 300]))
    labels = draw(hnp.arrays(np.uint16, SHAPE, elements=st.sampled_from([0, 1, 2, 300])))
    answers = {}
    for axis in draw(st.lists(st.integers(0, 2), max_size=4)):
        plane = Plane(axis, draw(st.integers(0, SHAPE[axis] - 1)))
        answers[plane] = replace(
            answer_of(draw(hnp.arrays(bool, in_plane_shape(axis)))), given=draw(st.booleans()), familiar=draw(st.booleans())
        )
    axis = draw(st.integers(0, 2))
    click = Click(tuple(draw(st.integers(0, s - 1)) for s in SHAPE), draw(st.booleans()), axis)
    return labels, State(label, None, 300, predictions=answers), click, draw(hnp.arrays(bool, in_plane_shape(axis)))


@given(situations())
@settings(max_examples=150, deadline=None)
def test_repainting_follows_the_plain_rules(situation):
    labels, state, click, mask = situation
    assert (painted(LabelMap(SHAPE, labels), state, click, mask) == plain(labels, state, click, mask)).all()


@given(situations())
@settings(max_examples=100, deadline=None)
def test_the_model_is_told_what_the_labels_say(situation):
    labels, state, click, _ = situation
    here = np.take(labels, click.plane.index, click.plane.axis)
    told = previous_answer(LabelMap(SHAPE, labels), state, click.plane)
    mask, earlier = here == state.label, state.predictions.get(click.plane)
    if earlier is None:
        assert (told is None) == (not mask.any())
        assert told is None or (told.given and (told.mask == mask).all())
        return
    assert (told.given, told.familiar) == (earlier.given, earlier.familiar)  # whoever painted meanwhile
    foreign = (here != 0) & ~mask
    assert (told.mask == np.where(foreign, told.mask, mask)).all()
    full = np.full(mask.shape, -4.0)
    full[earlier.box.slices] = earlier.logits
    agrees = (earlier.mask == mask) | foreign
    inside = np.zeros(mask.shape, bool)
    inside[told.box.slices] = True
    shown = np.full(mask.shape, -4.0)
    shown[told.box.slices] = told.logits
    assert (shown == full)[agrees].all(), "soft logits stay where nobody painted"


def test_an_answer_that_nobody_painted_over_is_handed_back_as_it_is():
    mask = np.zeros((5, 6), bool)
    mask[1:3, 1:3] = True
    labels = np.zeros((5, 6), int)
    labels[mask] = 1
    answer = answer_of(mask)
    assert previous_answer(LabelMap(labels.shape, labels), State(1, None, 1, predictions={Plane(0, 0): answer}), Plane(0, 0)) is answer
    told = previous_answer(LabelMap(labels.shape, labels), State(1, None, 1), Plane(0, 0))
    assert told is not None
    assert told.given
    assert not answer.given


def test_a_positive_click_leaves_what_crossing_planes_painted_and_a_negative_one_takes_the_piece_it_hits():
    labels = np.zeros(SHAPE, int)
    labels[1, 1:4, 1:5] = 2
    state = State(2, None, 2, predictions={Plane(0, 1): answer_of(labels[1] == 2)})
    nothing = np.zeros(in_plane_shape(1), bool)
    positive = painted(LabelMap(SHAPE, labels), state, Click((3, 2, 0), True, axis=1), nothing)
    assert (positive == labels).all()
    negative = painted(LabelMap(SHAPE, labels), state, Click((1, 2, 2), False, axis=1), nothing)
    assert not negative[:, 2].any()
    assert (np.delete(negative, 2, 1) == np.delete(labels, 2, 1)).all()


# --- what was painted by hand lies in one plane ---


def test_a_stroke_in_a_picture_counts_for_the_clicks_that_follow():
    """It may be taller than wide, and lie where the picture has more columns than rows."""
    for columns in ((40, 43), (5, 12)):
        session = Session(Image(np.random.default_rng(1).random((1, 30, 60)), name="picture"), DiskSegmenter(3.0), FakePolicy(0, 0))
        session.paint((slice(5, 13), slice(*columns)), np.ones((8, columns[1] - columns[0]), int))
        assert session.worked_in == (Plane(0, 0),)
        assert not only_crossed(session._labels, session._state, Plane(0, 0))
        before = session.labels == 1
        session.add(Click((20, 20)))
        assert (session.labels[before] == 1).all(), "what the user painted stays"


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_voxel_that_was_painted_in_a_slice_belongs_to_that_slice_alone(axis):
    values = np.random.default_rng(0).normal(0, 1, (1, 9, 30, 30))
    session = Session(Image(values, name="volume"), DiskSegmenter(6.0), FakePolicy(0, 0))
    middle = [4, 15, 15]
    session.add(Click(tuple(middle), axis=axis))
    other = [index + (a != axis) for a, index in enumerate(middle)]
    session.paint(tuple(slice(i, i + 1) for i in other), np.zeros((1, 1, 1), int))
    plane = Plane(axis, middle[axis])
    assert session._state.origin(1).own == {plane}
    assert session.worked_in == (plane,)


def test_a_voxel_that_was_painted_where_nothing_else_is_belongs_to_the_first_axis():
    session = Session(Image(np.random.default_rng(0).random((1, 9, 30, 30)), name="volume"), DiskSegmenter(6.0), FakePolicy(0, 0))
    session.paint((slice(4, 5), slice(7, 8), slice(9, 10)), np.ones((1, 1, 1), int))
    assert session._state.origin(1).own == {Plane(0, 4)}


def test_a_negative_click_takes_the_whole_of_a_line_whichever_way_it_runs():
    for line in (np.eye(9, dtype=int), np.eye(9, dtype=int)[::-1]):
        answers = {Plane(0, 0): answer_of(np.zeros((9, 9), bool))}
        labels, state = LabelMap(line.shape, line), State(1, None, 1, predictions=answers)
        patch = repainting(labels, state, Click((4, 4), False), answer_of(np.zeros((9, 9), bool)))
        assert patch is not None
        assert patch.changed == 9
