"""Laws of propagation: what the user accepted stays, one undo takes all of it back, a cancelled one never was; and what it finds."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_apprentice.expectation import expected_to_go_on
from napari_apprentice.fakes import DiskSegmenter, FakePolicy, FakeStore
from napari_apprentice.ground import Slice, accepted_slices, worths
from napari_apprentice.journal import Journal, read_journal, replay_labels
from napari_apprentice.labelmap import LabelMap
from napari_apprentice.origins import Origin
from napari_apprentice.painting import implied, previous_answer
from napari_apprentice.propagation import Carrying, Outcome, Stop, propagate
from napari_apprentice.replay import replay
from napari_apprentice.session import Session, resume
from napari_apprentice.types import Box, Click, Image, LabelsError, Plane, Prediction, SessionError

SHAPE = (13, 40, 44)
ROWS, COLS = np.mgrid[: SHAPE[1], : SHAPE[2]]


class Echo(DiskSegmenter):
    """Says again what it is told."""

    def predict(self, image_slice, prompt):
        return super().predict(image_slice, prompt) if prompt.previous is None else prompt.previous


class Sure(Echo):
    """Says again what it is told, and gives that an IoU."""

    def __init__(self, score: float) -> None:
        super().__init__()
        self.score = score

    def predict(self, image_slice, prompt):
        return replace(super().predict(image_slice, prompt), score=self.score)


def disk(row: float, col: float, radius: float) -> np.ndarray:
    return (ROWS - row) ** 2 + (COLS - col) ** 2 <= radius**2


def scene(masks, spacing=(1.0, 1.0, 1.0), noise=4.0, seed=0) -> Image:
    """Bright objects on a textured ground that does not move."""
    rng = np.random.default_rng(seed)
    values = 80 + 60 * np.stack(masks) + 10 * np.sin(ROWS / 3) + rng.normal(0, noise, (len(masks), *ROWS.shape))
    return Image(values[None], np.diag([*spacing, 1.0]), "mm", name="scene")


MOVING = [disk(18, 14 + index, 8) if 2 <= index <= 10 else np.zeros(ROWS.shape, bool) for index in range(SHAPE[0])]
SCENE = scene(MOVING)


def iou(first, second) -> float:
    return (first & second).sum() / (first | second).sum()


def painted(image=SCENE, slices=(6,), masks=MOVING, segmenter=None, **options) -> Session:
    """A session whose object 1 was painted in some slices."""
    session = Session(image, segmenter or Echo(), FakePolicy(), **options)
    for index in slices:
        session.paint((slice(index, index + 1),), masks[index][None].astype(np.uint8))
    return session


def observed(session) -> tuple[object, ...]:
    return session.labels.astype(np.uint32).tobytes(), session.clicks, session.finished, session.doubtful(), session._segmenter.snapshot()


# --- what it finds ---


def test_a_disk_that_moves_is_followed_and_its_end_is_noticed():
    session = painted()
    _, outcome = session.propagate()
    for index in range(2, 11):
        assert iou(session.labels[index] == 1, MOVING[index]) > 0.85
    assert not session.labels[0].any()
    assert not session.labels[12].any()
    assert {stop.reason for stop in outcome.stops} == {"the object is gone"}


@pytest.mark.parametrize(("score", "last"), [(0.95, 12), (0.6, 4)])
def test_an_object_that_fades_is_followed_as_long_as_the_network_believes_in_it(score, last):
    there = disk(20, 22, 8)
    rng = np.random.default_rng(0)
    ground = 80 + 10 * np.sin(ROWS / 3)
    fading = [ground + 60 * there * 0.7**index + rng.normal(0, 4, ROWS.shape) for index in range(SHAPE[0])]
    session = Session(Image(np.stack(fading)[None]), Sure(score), FakePolicy())
    session.paint((slice(0, 1),), there[None].astype(np.uint8))
    _, outcome = session.propagate()
    reached = np.flatnonzero((session.labels == 1).any(axis=(1, 2)))
    assert reached[-1] >= last if score > 0.9 else reached[-1] <= last
    for stop in outcome.stops:
        assert stop.ending is not None
        assert stop.ending.doubted == pytest.approx(1 - score)
        assert stop.error == expected_to_go_on(stop.ending)


def test_identical_slices_keep_the_mask():
    image = Image(np.repeat(SCENE.data[:, 6:7], 5, axis=1))
    session = Session(image, Echo(), FakePolicy())
    session.paint((slice(2, 3),), MOVING[6][None].astype(np.uint8))
    session.propagate()
    assert (session.labels == MOVING[6]).all()
    moving = painted()
    moving.propagate()
    there = {doubt.plane.index: doubt.error for doubt in moving.doubtful()}
    for doubt in session.doubtful():
        assert doubt.error <= there[doubt.plane.index + 4]  # as far from the slice that was painted


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_axis_is_as_good(axis):
    image = Image(np.moveaxis(SCENE.data, 1, axis + 1))
    labels = np.zeros(SHAPE, np.uint8)
    labels[6] = MOVING[6]
    session = Session(image, Echo(), FakePolicy(), labels=np.moveaxis(labels, 0, axis))
    session.propagate(1, axis)
    straight = painted()
    straight.propagate()
    np.testing.assert_array_equal(np.moveaxis(session.labels, axis, 0), straight.labels)


def test_a_longer_step_is_trusted_less():
    near, far = (painted(scene(MOVING, (step, 1.0, 1.0))) for step in (0.5, 8.0))
    for session in (near, far):
        session.propagate()
    errors = [{doubt.plane.index: doubt.error for doubt in session.doubtful()} for session in (near, far)]
    assert all(errors[1][index] > errors[0][index] for index in (5, 7))


@pytest.mark.parametrize("unit", [0.01, 1000.0])
def test_the_unit_of_the_spacing_does_not_matter(unit):
    plain, other = (painted(scene(MOVING, (2 * length, length, length)), (3, 7)) for length in (1.0, unit))
    (_, expected), (_, found) = plain.propagate(), other.propagate()
    np.testing.assert_array_equal(other.labels, plain.labels)
    assert found.carried == pytest.approx(expected.carried, abs=1e-3)
    for index, signs in expected.signs.items():
        assert found.signs[index] == pytest.approx(signs, abs=1e-4)


def test_how_far_a_slice_is_follows_from_the_nearest_that_was_accepted():
    one, two = ({i: signs.away for i, signs in painted(slices=some).propagate()[1].signs.items()} for some in ((3,), (3, 9)))
    assert all(two[index] < one[index] for index in (7, 8, 10))
    assert two[4] == one[4]
    assert sorted((4, 5, 6), key=two.get) == [4, 5, 6]


def test_the_network_is_heeded_where_it_finds_what_was_accepted():
    class Wrong(DiskSegmenter):
        def predict(self, image_slice, prompt):
            return Prediction(np.full(image_slice.shape, 9.0, np.float32), Box(0, 0, *image_slice.shape), image_slice.shape)

    alone, deaf = painted(), painted(segmenter=Wrong())
    for session in (alone, deaf):
        session.propagate()
    np.testing.assert_array_equal(deaf.labels, alone.labels)


def test_the_network_is_told_the_class_of_the_object_that_is_carried():
    class Attentive(Echo):
        def predict(self, image_slice, prompt):
            heard.append(prompt.kind)
            return super().predict(image_slice, prompt)

    heard: list[str] = []
    session = painted(segmenter=Attentive())
    session.accept(learn=False)
    session.name(1, "cell")
    session.name(session.label, "nucleus")
    heard.clear()
    session.propagate(1)
    assert set(heard) == {"cell"}


def test_between_two_slices_both_ends_count():
    masks = [disk(18, 20, 4 + index) for index in range(9)]
    image = Image(np.repeat(np.random.default_rng(0).normal(size=(1, 1, *ROWS.shape)), 9, axis=1))  # shows nothing
    session = painted(image, (0, 8), masks)
    _, outcome = session.propagate()
    assert sorted(outcome.carried) == list(range(1, 8))
    assert outcome.stops == ()
    areas = [(session.labels[index] == 1).sum() for index in range(9)]
    assert areas == sorted(areas)


def test_it_stops_before_a_slice_that_shows_nothing():
    values = SCENE.data.copy()
    values[0, 8] = 7.0
    _, outcome = painted(Image(values)).propagate()
    assert max(outcome.carried) <= 8
    assert any(stop.index == 8 and "constant" in stop.reason for stop in outcome.stops)


def test_from_an_accepted_slice_that_shows_nothing_the_shape_is_carried_to_the_next_accepted_one():
    values = SCENE.data.copy()
    values[0, 3] = 7.0
    session = painted(Image(values), (3, 8), [MOVING[6]] * SHAPE[0])
    _, outcome = session.propagate()
    assert set(range(4, 8)) <= set(outcome.carried)
    assert all(iou(session.labels[index] == 1, MOVING[6]) > 0.85 for index in range(4, 8))


@pytest.mark.parametrize("shape", [(5, 1, 30), (5, 30, 1), (5, 1, 1), (5, 2, 300)])
def test_slices_that_are_one_voxel_wide_are_carried_without_motion(shape):
    image = Image(np.repeat(np.random.default_rng(0).normal(size=(1, 1, *shape[1:])), 5, axis=1) + np.arange(5)[:, None, None])
    labels = np.zeros(shape, np.uint8)
    labels[2, : shape[1] // 2 + 1, : shape[2] // 2 + 1] = 1
    session = Session(image, Echo(), FakePolicy(), labels=labels)
    _, outcome = session.propagate(1)
    assert set(outcome.carried) <= {0, 1, 3, 4}
    assert (session.labels[2] == labels[2]).all()
    if max(shape[1:]) > 6:
        assert (session.labels == labels[2]).all()


def test_a_single_slice_has_nowhere_to_go():
    session = Session(Image(SCENE.data[:, 6:7]), Echo(), FakePolicy())
    session.paint((slice(0, 1),), MOVING[6][None].astype(np.uint8))
    change, outcome = session.propagate()
    assert change.region is None
    assert outcome.sentence == "no slice was filled"
    session.undo()
    assert not session.can_undo  # nothing was done


# --- what it must not touch ---


def test_the_sentence_says_every_reason_once():
    gone, split = "the object is gone", "the object splits"
    stops = (Stop(2, gone, 0.3), Stop(9, gone, 0.3), Stop(12, split, 0.75))
    said = Outcome(0, None, dict.fromkeys(range(2, 13), 0.1), stops).sentence
    assert said == f"8 slices were filled; it ended at slices 2 and 9: {gone}; it ended at slice 12: {split}"
    assert Outcome(0, None, {3: 0.1, 4: 0.3}, (Stop(4, gone, 0.3),)).sentence == f"1 slice was filled; it ended at slice 4: {gone}"


@settings(max_examples=12, deadline=None)
@given(
    own=st.sets(st.integers(2, 10), min_size=1, max_size=3),
    other=st.tuples(st.integers(0, 12), st.integers(0, 30), st.integers(0, 30)),
    label=st.sampled_from([1, 300]),
)
def test_whatever_is_somebodys_stays_and_one_undo_takes_all_back(own, other, label):
    labels = np.zeros(SHAPE, np.uint16)
    labels[tuple(slice(start, start + 8) for start in other)] = 7
    for index in own:
        labels[index][MOVING[index] & (labels[index] == 0)] = label
    session = Session(SCENE, Echo(), FakePolicy(), labels=labels)
    before = observed(session)
    session.propagate(label)
    after = observed(session)
    for index in own:
        np.testing.assert_array_equal(session.labels[index], labels[index])
    np.testing.assert_array_equal(session.labels[labels != 0], labels[labels != 0])
    assert set(np.unique(session.labels)) <= {0, 7, label}
    assert all(doubt.plane.index not in own and 0 <= doubt.error <= 1 for doubt in session.doubtful())
    session.undo()
    assert observed(session) == before
    session.redo()
    assert observed(session) == after


def boxed(ids, seed) -> Session:
    """A session of a noisy volume in which a bright bar is partly labelled with every one of ``ids``, beside each other."""
    rng = np.random.default_rng(seed)
    values, labels = rng.normal(0, 1, (1, 12, 24, 24)), np.zeros((12, 24, 24), np.uint8)
    for place, label in enumerate(ids):
        values[0, 2:10, 3:12, 3 + 9 * place : 11 + 9 * place] += 50
        for index in rng.choice(12, int(rng.integers(0, 6)), replace=False):
            labels[index, 3:12, 3 + 9 * place : 3 + 9 * place + int(rng.integers(2, 9))] = label
    return Session(Image(values), DiskSegmenter(3.0), FakePolicy(0, 0), labels=labels)


steps = st.lists(st.tuples(st.booleans(), st.integers(0, 2), st.integers(2, 9), st.integers(3, 11), st.integers(3, 10)), max_size=5)


def worked(session, label, place, steps):
    """Clicks for an object, and propagations of it across any axis."""
    session.select(label)
    for propagating, axis, *voxel in steps:
        if propagating:
            with suppress(SessionError):  # nothing is accepted across this axis
                session.propagate(label, axis)
        else:
            session.add(Click((voxel[0], voxel[1], voxel[2] + 9 * place), True, axis))


@settings(max_examples=12)
@given(seed=st.integers(0, 99), steps=steps, axis=st.integers(0, 2), turn=st.integers(1, 2))
def test_what_is_propagated_twice_is_as_it_was_after_once(seed, steps, axis, turn):
    session, other = boxed([1], seed), (axis + turn) % 3
    worked(session, 1, 0, [*steps, (False, other, 6, 7, 7), (True, other, 6, 7, 7), (False, axis, 6, 7, 7)])
    with suppress(SessionError):
        session.propagate(1, axis)
        once, doubts = session.labels.copy(), session.doubtful()
        change, outcome = session.propagate(1, axis)
        np.testing.assert_array_equal(session.labels, once)
        assert (change.region, session.doubtful()) == (None, doubts), outcome.sentence


def test_a_slice_before_which_propagation_ended_keeps_what_was_carried_there_across_another_axis(tmp_path):
    values = np.random.default_rng(0).normal(0, 1, (1, 14, 40, 40))
    values[0, 2:12, 10:21, 13:18] += 50
    image = Image(values)
    session = Session(image, DiskSegmenter(5.0), FakePolicy(0, 0), journal=Journal.create(tmp_path, image))
    session.add(Click((6, 15, 15)))
    session.propagate(1, 0)
    session.add(Click((6, 15, 15), True, 2))
    before = session.labels.copy()
    _, outcome = session.propagate(1, 2)
    ended = [stop.index for stop in outcome.stops]
    assert (session.labels[:, :, ended] == before[:, :, ended]).all()
    assert before[:, :, ended].any()
    session.close()
    session = resume(tmp_path, image, DiskSegmenter(5.0), FakePolicy(0, 0))
    assert session.propagate(1, 2)[0].region is None
    filled = session.labels[:, :, 17].sum()
    session.paint((slice(None), slice(None), slice(16, 17)), np.zeros((14, 40, 1), np.uint8))
    session.propagate(1, 2)
    assert Plane(2, 17) not in session._state.origin(1).filled
    assert session.labels[:, :, 17].sum() < filled  # what was filled, and is not reached any more, is emptied
    session.close()


def users(session, label):
    """(S) where the user says that there is an object: in slices of their own, and wherever nothing was carried."""
    origin, held = session._state.origin(label), session.labels == label
    own, carried = (np.zeros(held.shape, bool) for _ in range(2))
    for planes, marked in ((origin.own, own), (origin.carried, carried)):
        for plane in planes:
            marked[(slice(None),) * plane.axis + (plane.index,)] = True
    return held & (own | ~carried)


@settings(max_examples=25)
@given(seed=st.integers(0, 99), first=steps, second=steps, axes=st.lists(st.integers(0, 2), max_size=2))
def test_what_was_the_users_in_two_objects_stays_when_they_are_one_and_that_is_propagated(seed, first, second, axes):
    session = boxed([1, 2], seed)
    worked(session, 1, 0, first)
    worked(session, 2, 1, second)
    known, accepted = users(session, 1) | users(session, 2), {}
    for axis in range(3):
        both = [accepted_slices(session._labels, session._state.origin(label), label, axis) for label in (1, 2)]
        carried = [{plane.index for plane in session._state.origin(label).carried if plane.axis == axis} for label in (1, 2)]
        accepted[axis] = {i for i in both[0] if i in carried[1]} | {i for i in both[1] if i in carried[0]}
    with suppress(SessionError):
        session.merge(2, 1)
        for axis, planes in accepted.items():
            assert planes <= set(accepted_slices(session._labels, session._state.origin(1), 1, axis))
        assert known[session.labels == 1].sum() == known.sum()
        for axis in axes:
            session.propagate(1, axis)
            assert (session.labels[known] == 1).all()


def test_a_part_of_a_split_object_knows_of_its_own_slices_only(tmp_path):
    session = painted(journal=Journal.create(tmp_path, SCENE))
    session.propagate()
    session.paint((slice(5, 6),), np.zeros((1, *ROWS.shape), np.uint8))
    first, last = (tuple(map(int, np.argwhere(session.labels == 1)[end])) for end in (0, -1))
    session.split(1, [first, last])
    for label in (1, 2):
        there = {int(index) for index in np.argwhere(session.labels == label)[:, 0]}
        doubts = {doubt.plane.index for doubt in session.doubtful() if doubt.label == label}
        assert doubts
        assert doubts <= there
        assert {doubt.plane.index for doubt in session.advised(label)} <= there
    session.close()
    assert observed(resume(tmp_path, SCENE, Echo(), FakePolicy())) == observed(session)


def test_a_corrected_slice_is_never_touched_and_its_neighbours_follow():
    session = painted()
    session.propagate()
    moved = disk(18, 26, 5)
    session.paint((slice(8, 9),), moved[None].astype(np.uint8))
    assert Plane(0, 8) not in {doubt.plane for doubt in session.doubtful()}
    before = session.labels.copy()
    session.propagate()
    for index in (6, 8):
        np.testing.assert_array_equal(session.labels[index], before[index])
    np.testing.assert_array_equal(session.labels[:6], before[:6])  # they did not depend on it
    assert (session.labels[9] != before[9]).any()


def test_a_correction_makes_what_was_carried_across_there_outdated():
    session = painted()
    assert session.outdated(1) == ()
    session.propagate()
    session.approve(Plane(0, 7))
    assert session.outdated(1) == ()
    session.paint((slice(8, 9),), np.roll(MOVING[8], 3, axis=1)[None].astype(np.uint8))
    session.paint((slice(None), slice(None), slice(20, 21)), session.labels[:, :, 20:21] | (session.labels[:, :, 19:20]))
    assert session.outdated(1) == (0,)
    session.undo()
    session.undo()
    assert session.outdated(1) == ()
    session.redo()
    session.propagate()
    assert session.outdated(1) == ()


def test_an_approved_slice_is_never_touched_again():
    session = painted()
    session.propagate()
    moved = Session(SCENE, Echo(), FakePolicy(), labels=session.labels)  # another way to the same labels, to compare with
    assert session.slices(1)[8] in (Slice.CARRIED, Slice.DOUBTFUL)
    assert session.approve(Plane(0, 8)).region is None
    assert session.slices(1)[8] == Slice.ACCEPTED
    assert Plane(0, 8) not in {doubt.plane for doubt in session.doubtful()}
    session.paint((slice(6, 7),), np.roll(MOVING[6], 6, axis=1)[None].astype(np.uint8))
    session.propagate()
    np.testing.assert_array_equal(session.labels[8], moved.labels[8])
    assert (session.labels[5] != moved.labels[5]).any()
    session.approve()
    assert session.doubtful() == []
    with pytest.raises(SessionError, match="no slice that was carried"):
        session.approve()


@pytest.mark.parametrize(("image", "plane"), [(SCENE, Plane(0, 99)), (SCENE, Plane(3, 0)), (Image(SCENE.data[:, 6]), Plane(0, 0))])
def test_only_slices_that_there_are_can_be_approved(image, plane):
    with pytest.raises(SessionError, match="expected one of an image of shape"):
        Session(image, Echo(), FakePolicy()).approve(plane, label=1)


def test_the_slices_are_what_is_known_of_them():
    session = painted(slices=(6,))
    assert [index for index, kind in enumerate(session.slices(1)) if kind == Slice.ACCEPTED] == [6]
    _, outcome = session.propagate()
    slices = session.slices(1)
    for index, error in outcome.carried.items():
        empty = not (session.labels[index] == 1).any()
        assert slices[index] == (Slice.DOUBTFUL if error > 0.15 else Slice.EMPTY if empty else Slice.CARRIED)
    assert slices[6] == Slice.ACCEPTED
    assert slices[0] == Slice.EMPTY or 0 in outcome.carried


def test_a_slice_that_the_user_emptied_is_a_wall():
    session = painted()
    session.propagate()
    session.paint((slice(4, 5),), np.zeros((1, *ROWS.shape), np.uint8))
    session.propagate()
    assert not session.labels[:5].any()
    assert session.labels[5].any()


def test_lines_of_planes_that_the_user_accepted_across_other_axes_stay():
    session = painted()
    column = np.zeros((SHAPE[0], SHAPE[1], 1), np.uint8)
    column[:, 4:7] = 1  # far from the object
    session.paint((slice(None), slice(None), slice(20, 21)), np.where(session.labels[:, :, 20:21] == 1, 1, column))
    before = session.labels[:, :, 20].copy()
    assert sorted(accepted_slices(session._labels, session._state.origin(1), 1, 0)) == [6]
    session.propagate()
    np.testing.assert_array_equal(session.labels[:, :, 20], before)
    assert session.labels[5].sum() > 20


def test_a_click_makes_a_slice_the_users():
    session = painted(segmenter=DiskSegmenter(5.0))
    session.propagate()
    session.add(Click((7, 18, 21), True, 0))
    before = session.labels[7].copy()
    session.propagate()
    np.testing.assert_array_equal(session.labels[7], before)
    assert Plane(0, 7) in session._state.origin(1).own


def test_discarding_forgets_where_slices_came_from():
    session = painted()
    session.propagate()
    session.discard()
    assert session.doubtful() == []
    with pytest.raises(SessionError, match="no accepted slice across axis 0"):
        session.propagate()


# --- as an action ---


@pytest.mark.parametrize("after", [1, 4])
def test_cancelled_in_the_middle_nothing_has_happened(after, tmp_path):
    with Journal.create(tmp_path, SCENE) as journal:
        session = painted(journal=journal)
        before, written = observed(session), journal.sequence

        def stop(done, total):
            assert 1 <= done <= total
            if done >= after:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            session.propagate(on_slice=stop)
        assert observed(session) == before
        assert journal.sequence == written
        session.propagate()
        assert session.doubtful()


def test_progress_ends_where_it_said():
    told = []
    painted(slices=(4, 8)).propagate(on_slice=lambda done, total: told.append((done, total)))
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1][0] == told[-1][1]
    assert len({total for _, total in told}) == 1


def test_the_journal_gives_it_back_without_a_model_and_a_replay_does_it_again(tmp_path):
    session = Session(SCENE, Echo(), FakePolicy(), journal=Journal.create(tmp_path, SCENE), store=FakeStore())
    session.add(Click((6, 18, 20)))
    session.accept()
    session.propagate()
    session.select(1)
    session.add(Click((9, 18, 23)))
    session.propagate()
    session.undo()
    session.redo()
    expected = observed(session)
    session.undo()
    undone = observed(session)
    session.redo()
    session.close()
    np.testing.assert_array_equal(replay_labels(tmp_path), session.labels)
    events = read_journal(tmp_path)[1]
    assert [event.kind for event in events if event.axis is not None] == ["propagate", "propagate"]

    resumed = resume(tmp_path, SCENE, Echo(), FakePolicy(), FakeStore())
    assert observed(resumed) == expected
    resumed.undo()
    assert observed(resumed) == undone
    resumed.close()

    again = Session(SCENE, Echo(), FakePolicy())
    replay(again, [event for event in events if event.kind not in ("undo", "redo")])
    assert observed(again) == expected


def test_the_ranking_is_worst_first_and_over_all_objects():
    labels = np.zeros(SHAPE, np.uint8)
    labels[6] = MOVING[6]
    labels[5, 30:36, 30:38] = 2
    session = Session(SCENE, Echo(), FakePolicy(), labels=labels)
    for label in (1, 2):
        session.propagate(label)
    errors = [doubt.error for doubt in session.doubtful()]
    assert errors == sorted(errors, reverse=True)
    assert {doubt.label for doubt in session.doubtful()} == {1, 2}


def carrying_origin(labels, errors, own):
    return Origin(frozenset(Plane(0, index) for index in own), {Plane(0, index): error for index, error in errors.items()})


def stack(areas) -> LabelMap:
    labels = np.zeros((len(areas), 4, 50), np.uint8)
    for plane, area in zip(labels, areas, strict=True):
        plane.ravel()[:area] = 1
    return LabelMap(labels.shape, labels)


def worths_of(areas, errors, own) -> dict[int, float]:
    labels = stack(areas)
    return worths(labels, carrying_origin(labels, errors, own), 1, 0)


@given(st.lists(st.tuples(st.integers(1, 100), st.floats(0.01, 1)), min_size=3, max_size=9), st.integers(0, 9))
def test_a_correction_helps_its_own_slice_at_least_and_all_that_is_wrong_at_most(slices, own):
    own = min(own, len(slices) - 1)
    errors = {index: error for index, (_, error) in enumerate(slices) if index != own}
    wrong = {index: errors[index] * slices[index][0] for index in errors}
    found = worths_of([area for area, _ in slices], errors, [own])
    assert found.keys() == errors.keys()
    for index, worth in found.items():
        side = sum(w for other, w in wrong.items() if (other < own) == (index < own))
        assert wrong[index] - 1e-9 <= worth <= side + 1e-9


def test_the_middle_of_the_longest_stretch_is_worth_most():
    found = worths_of([20] * 12, {1: 0.2, 2: 0.2, 4: 0.2, 5: 0.3, 6: 0.4, 7: 0.5, 8: 0.4, 9: 0.3, 10: 0.2}, [0, 3, 11])
    assert max(found, key=found.get) in (6, 7, 8)
    tail = worths_of([20] * 9, {index: index / 10 for index in range(1, 9)}, [0])
    assert 3 <= max(tail, key=tail.get) <= 6


def test_where_it_ended_counts_like_its_neighbour():
    found = worths_of([20, 20, 20, 0], {1: 0.1, 2: 0.1, 3: 0.5}, [0])
    assert found[3] >= 10
    assert worths_of([20, 20], {}, [0]) == {}


def test_what_is_advised_is_what_was_carried():
    session = painted()
    assert session.advised(1) == []
    session.propagate()
    assert sorted(session.advised(1)) == sorted(session.doubtful())
    best = session.advised(1)[0].plane
    session.approve(best)
    assert best not in {doubt.plane for doubt in session.advised(1)}


def test_between_two_equal_masks_lies_that_mask_whatever_the_picture_shows():
    image = Image(np.random.default_rng(0).normal(size=(1, 7, *ROWS.shape)))
    session = painted(image, (0, 6), [MOVING[6]] * 7)
    session.propagate()
    assert (session.labels == MOVING[6]).all()


def test_a_carried_slice_is_told_as_a_guess_and_one_that_the_user_made_is_not():
    session = painted()
    session.propagate()
    guess = previous_answer(session._labels, session._state, Plane(0, 5))
    made = previous_answer(session._labels, session._state, Plane(0, 6))
    np.testing.assert_array_equal(guess.mask, session.labels[5] == 1)
    np.testing.assert_array_equal(made.mask, session.labels[6] == 1)
    assert np.unique(np.abs(guess.logits)).size > 2
    assert np.unique(np.abs(made.logits)).size == 1


def test_a_middle_is_implied_where_all_clicks_say_where_the_object_is_not():
    previous = Prediction.from_mask(MOVING[6])
    edge, middle, yes = Click((18, 27), False), Click((18, 20), False), Click((18, 22))
    assert implied((edge,), previous) == (Click((18, 20)), edge)
    assert implied((edge, yes), previous) == (edge, yes)
    assert implied((middle,), previous) == (middle,)
    assert implied((edge,), None) == (edge,)
    assert implied((edge,), Prediction.from_mask(np.zeros_like(MOVING[6]))) == (edge,)


def test_by_default_it_takes_the_open_object_or_the_one_accepted_last():
    session = painted()
    assert session.candidate == 1
    session.accept()
    assert (session.label, session.candidate) == (2, 1)
    session.propagate()
    assert {doubt.label for doubt in session.doubtful()} == {1}


@pytest.mark.parametrize(
    ("image", "axis", "reason"),
    [(SCENE, 3, "expected axis 0, 1 or 2"), (SCENE, 0, "no accepted slice"), (Image(SCENE.data[:, 6]), 0, "of a volume")],
)
def test_what_cannot_be_propagated_is_refused(image, axis, reason):
    session = Session(image, Echo(), FakePolicy())
    with pytest.raises(SessionError, match=reason):
        session.propagate(1, axis)
    assert not session.can_undo


def test_background_is_no_object():
    with pytest.raises(LabelsError, match="from 1 to"):
        painted().propagate(0)


@pytest.mark.parametrize("slant", [0, 1, -1])
def test_a_thin_line_that_grows_is_no_split_whichever_way_it_runs(slant):
    masks = [(abs(ROWS - 20 - slant * (COLS - 20)) < 1) & (abs(COLS - 20) <= 8 + 2 * index) for index in range(4)]

    class Sees(DiskSegmenter):
        def predict(self, image_slice, prompt):
            return Prediction.from_mask(masks[image_slice.plane.index], 6.0)

    labels = np.zeros((4, *ROWS.shape), np.uint8)
    labels[0] = masks[0]
    image = scene(masks, (8.0, 1.0, 1.0))
    outcome = propagate(image, Sees(), LabelMap(labels.shape, labels), Origin(), 1, carrying=Carrying(doubtful=1.0, faded=0.0))
    assert outcome.sentence == "3 slices were filled"


def test_a_split_ends_the_walk():
    masks = [disk(18, 20, 9) for _ in range(5)] + [disk(18, 11, 5) | disk(18, 31, 5) for _ in range(4)]

    class Sees(DiskSegmenter):
        def predict(self, image_slice, prompt):
            return Prediction.from_mask(masks[image_slice.plane.index], 6.0)

    labels = np.zeros((9, *ROWS.shape), np.uint8)
    labels[2] = masks[2]
    image = scene(masks, (8.0, 1.0, 1.0))
    outcome = propagate(image, Sees(), LabelMap(labels.shape, labels), Origin(), 1, carrying=Carrying(doubtful=1.0, faded=0.0))
    assert any(stop.reason == "the object splits" for stop in outcome.stops), outcome.sentence
