"""A box around an object: what it is, what the network is told of it, and what becomes of it on the disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_apprentice.adaptation import POLICIES
from napari_apprentice.boxes import beside, inscribed
from napari_apprentice.fakes import DiskSegmenter, FakePolicy
from napari_apprentice.files import read, read_labels
from napari_apprentice.journal import Journal, read_journal
from napari_apprentice.record import case_record, click_rows
from napari_apprentice.replay import read_recording, replay
from napari_apprentice.segmenter import NetworkSegmenter
from napari_apprentice.session import Session, resume
from napari_apprentice.shapes import bounding_box
from napari_apprentice.simulation import BoxRobot, CentreRobot
from napari_apprentice.types import Box, Click, ClickError, Image, Lesson, Plane, Prediction, Prompt, ReadError, outcome
from napari_apprentice.zoom import ZoomConfig

SAMPLES = Path(__file__).parents[1] / "src" / "napari_apprentice" / "sample_data"
SHAPE = (40, 50)


@st.composite
def boxes(draw, shape=SHAPE):
    (top, bottom), (left, right) = (sorted(draw(st.lists(st.integers(0, size), min_size=2, max_size=2, unique=True))) for size in shape)
    return Box(top, left, bottom, right)


# --- the value ---


@given(boxes(), st.integers(0, 2), st.integers(0, 9))
def test_a_box_lies_in_its_plane_about_its_own_middle(box, axis, index):
    flat, solid = Click.around(box), Click.around(box, Plane(axis, index))
    assert flat.box == solid.box == solid.in_plane.box == box
    assert solid.plane == Plane(axis, index)
    assert solid.in_plane == flat.in_plane == flat
    row, col = flat.voxel
    assert box.top <= row < box.bottom
    assert box.left <= col < box.right
    assert flat.positive


@pytest.mark.parametrize(
    "box", [(1, 2, 1, 5), (5, 2, 4, 9), (1, 2, 3), "box", (0.5, 0, 4, 4), (True, 0, 4, 4), 7, (float("nan"), 0, 4, 4), (0, 0, 1e400, 4)]
)
def test_what_is_no_box_is_refused_in_one_sentence(box):
    with pytest.raises(ClickError, match="expected 4 whole numbers"):
        Click((2, 2), box=box)


@pytest.mark.parametrize("click", [{"voxel": (9, 2)}, {"voxel": (2, 2), "positive": False}])
def test_a_box_is_positive_and_holds_its_place(click):
    with pytest.raises(ClickError, match="expected a positive one, with that place in it"):
        Click(**click, box=(0, 0, 5, 5))


@pytest.mark.parametrize(("axis", "shape"), [(0, (12, 10)), (1, (5, 10)), (2, (5, 12))])
def test_a_box_beyond_its_slice_is_refused(axis, shape):
    volume = Image(np.random.default_rng(0).random((1, 5, 12, 10)))
    volume.check_click(Click.around(Box(0, 0, *shape), Plane(axis, 2)))
    for larger in (Box(0, 0, shape[0] + 1, shape[1]), Box(0, 0, shape[0], shape[1] + 1), Box(-1, 0, 3, 3), Box(0, -1, 3, 3)):
        with pytest.raises(ClickError, match="expected one inside its slice"):
            volume.check_click(Click.around(larger, Plane(axis, 2)))


@pytest.mark.parametrize("box", [(1, 2, 3), None, 7, (1, 2, 3, "x"), (3, 3, 3, 9)])
def test_around_what_is_no_box_nothing_is_clicked(box):
    with pytest.raises(ClickError):
        Click.around(box)
    with pytest.raises(ClickError):
        Click.around(box, Plane(0, 2))


def test_of_what_was_said_before_a_box_only_what_lies_in_it_counts():
    inside, outside, after = Click((5, 5), False), Click((20, 5)), Click((30, 30), False)
    first, box = Click.around(Box(15, 0, 25, 9)), Click.around(Box(0, 0, 10, 10))
    assert Prompt((inside, outside, first, box, after)).clicks == (inside, box, after)
    assert Prompt((inside, outside, after)).clicks == (inside, outside, after)
    assert Prompt((box, outside)).clicks == (box, outside)
    assert Prompt((outside, box, after)).points == (after,)


# --- what a network is told ---


@given(boxes())
def test_the_ellipse_fills_its_box_as_an_ellipse_does_and_nothing_else(box):
    said = inscribed(box, SHAPE)
    assert said.mask.sum() == said.mask[box.slices].sum() > 0
    part = said.mask[box.slices]
    assert np.array_equal(part, part[::-1])
    assert np.array_equal(part, part[:, ::-1])
    assert abs(part.sum() - np.pi / 4 * part.size) <= sum(part.shape) + 1


@given(boxes())
def test_the_clicks_beside_a_box_are_beside_it(box):
    said = beside(box, SHAPE)
    for click in said:
        row, col = click.voxel
        assert not click.positive
        assert 0 <= row < SHAPE[0]
        assert 0 <= col < SHAPE[1]
        assert not (box.top <= row < box.bottom and box.left <= col < box.right)
    away = max(round(0.06 * max(box.shape)), 1) + 1
    free = (box.top >= away, box.left >= away, box.bottom + away <= SHAPE[0], box.right + away <= SHAPE[1])
    assert len(said) == sum(free)


@pytest.fixture(scope="module")
def shipped():
    return NetworkSegmenter(device="cpu")


def sample(name="head.nii.gz", label=1):
    """A slice of sample data with one of its objects."""
    image = read(SAMPLES / name)
    stem, ending = name.split(".", 1)
    labels = read_labels(SAMPLES / f"{stem}_labels.{ending}")
    truth = labels > 0 if name == "fundus.png" else labels == label  # the disc, of which the cup is a part
    plane = Plane(0, 0 if image.ndim == 2 else int(truth.sum(axis=(1, 2)).argmax()))
    return image.slice(plane), truth if image.ndim == 2 else truth[plane.index]


def iou(prediction: Prediction, truth) -> float:
    return float((prediction.mask & truth).sum() / (prediction.mask | truth).sum())


@pytest.mark.parametrize(("name", "least"), [("fundus.png", 0.95), ("head.nii.gz", 0.5), ("em_stack.ome.tif", 0.75)])
def test_a_box_finds_the_object_about_as_well_as_its_own_ellipse_or_better(shipped, name, least):
    pixels, truth = sample(name)
    box = bounding_box(truth)
    answer = shipped.predict(pixels, Prompt((Click.around(box),)))
    assert iou(answer, truth) > max(iou(inscribed(box, pixels.shape), truth) - 0.01, least)


def test_a_box_begins_anew_and_says_nothing_of_late_clicks(shipped):
    pixels, truth = sample()
    box = Click.around(bounding_box(truth))
    found = shipped.predict(pixels, Prompt((box,)))
    wrong = Prediction.from_mask(~truth)
    again = shipped.predict(pixels, Prompt((box,), wrong))
    assert np.array_equal(again.logits, found.logits)
    assert again.box == found.box
    wrong = tuple(int(v) for v in np.argwhere(truth != found.mask)[0])
    correction = Click(wrong, bool(truth[wrong]))
    smaller = Click(box.voxel, box=Box(box.voxel[0], box.voxel[1], box.voxel[0] + 1, box.voxel[1] + 1))
    for count, same in ((1, False), (shipped.zoom.late_clicks - 2, False), (shipped.zoom.late_clicks - 1, True)):
        first, second = (shipped.predict(pixels, Prompt((one, *[correction] * count), found)) for one in (box, smaller))
        assert np.array_equal(first.logits, second.logits) is same
        assert first.mask[correction.voxel] == second.mask[correction.voxel] == correction.positive


def test_the_middle_of_a_box_is_no_place_of_the_object_where_others_are_named():
    zoom, found = ZoomConfig(), Prediction.from_mask(np.pad(np.ones((6, 6)), ((4, 30), (4, 40))))
    box, point = Click.around(Box(0, 0, 40, 50)), Click((6, 6))
    assert zoom.grown_window(Prompt((box, point), found), SHAPE) == zoom.grown_window(Prompt((point,), found), SHAPE)
    assert zoom.first_looks((box, point), SHAPE) == zoom.first_looks((point,), SHAPE)
    assert zoom.first_looks((box,), SHAPE) == zoom.first_looks((Click(box.voxel),), SHAPE)


def test_where_nothing_is_seen_in_a_box_its_ellipse_is_the_answer(shipped, monkeypatch):
    pixels, _ = sample()
    word = NetworkSegmenter._word

    def blind(self, *asked):
        said, score, output = word(self, *asked)
        return said * 0 - 5, score, output

    monkeypatch.setattr(NetworkSegmenter, "_word", blind)
    box = Box(20, 30, 50, 44)
    assert np.array_equal(shipped.predict(pixels, Prompt((Click.around(box),))).mask, inscribed(box, pixels.shape).mask)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_box_teaches_nothing_until_its_object_is_accepted(shipped, policy):
    pixels, truth = sample()
    before, box = shipped.snapshot(), Click.around(bounding_box(truth))
    try:
        answer = POLICIES[policy].on_click(shipped, pixels, Prompt((box,)))
        assert shipped.snapshot() is before
        second = POLICIES[policy].on_click(shipped, pixels, Prompt((box, Click(box.voxel, bool(truth[box.voxel]))), answer))
        assert second.mask[box.voxel] == truth[box.voxel]
        elsewhere = Click(tuple(int(v) for v in np.argwhere(~truth)[0]))
        report = outcome(POLICIES[policy].learning(shipped, Lesson(pixels, (elsewhere, box), truth)))
        assert report.accepted == (policy not in ("none", "ia", "mi"))
        for remembered in shipped.snapshot().memory:
            assert [[click.positive for click in view] for view in remembered.clicks] == [[True]] * len(remembered.clicks)
    finally:
        shipped.restore(before)


# --- a simulated user ---


@given(st.integers(0, 2**16), boxes())
def test_the_box_robot_is_off_by_a_twentieth_and_then_clicks_as_the_centre_robot(seed, where):
    rows, cols = np.indices(SHAPE)
    truth = inscribed(where, SHAPE).mask
    robot = BoxRobot(seed)
    first = robot.click(truth, np.zeros_like(truth))
    assert first == robot.click(truth, np.zeros_like(truth))
    found = bounding_box(truth)
    for drawn, true, side in zip(first.box, found, found.shape * 2, strict=True):
        assert abs(drawn - true) <= max(round(0.05 * side), 1)
    assert first.box.top >= 0
    assert first.box.left >= 0
    assert first.box.bottom <= SHAPE[0]
    assert first.box.right <= SHAPE[1]
    mask = truth ^ ((rows - 5) ** 2 + (cols - 5) ** 2 < 9)
    assert robot.click(truth, mask, (first,)) == CentreRobot().click(truth, mask)
    assert robot.click(truth, truth, (first,)) is None


# --- a session, its journal and its record ---

VOLUME = Image(np.random.default_rng(0).random((1, 6, *SHAPE)), name="volume")


def test_a_box_is_written_read_resumed_and_done_again(tmp_path):
    session = Session(VOLUME, DiskSegmenter(2.0), FakePolicy(), journal=Journal.create(tmp_path, VOLUME))
    session.add(Click((2, 30, 40)))
    session.accept()
    session.add(drawn := Click.around(Box(3, 4, 15, 21), Plane(0, 2)))
    session.add(Click((2, 9, 9), positive=False))
    labels, clicks = session.labels.copy(), session.clicks
    session.close()
    assert [event.click for event in read_journal(tmp_path)[1] if event.click is not None][1] == drawn
    again = resume(tmp_path, VOLUME, DiskSegmenter(2.0), FakePolicy())
    assert np.array_equal(again.labels, labels)
    assert again.clicks == clicks
    again.undo()
    assert (again.labels[2, 3:15, 4:21] == 2).all()
    assert (again.labels == 2).sum() == 12 * 17
    again.redo()
    again.close()
    repeated = Session(VOLUME, DiskSegmenter(2.0), FakePolicy())
    assert replay(repeated, read_recording(tmp_path, like=VOLUME)) is None
    assert np.array_equal(repeated.labels, labels)
    rows = click_rows(case_record(tmp_path))
    assert [row["box"] for row in rows] == ["", "3 4 15 21", ""]


def test_a_list_of_clicks_may_hold_boxes(tmp_path):
    path = tmp_path / "clicks.json"
    path.write_text(json.dumps({"clicks": [{"voxel": [2, 9, 9], "box": [3, 4, 15, 21]}, {"voxel": [2, 9, 9], "positive": False}]}))
    events = [event for event in read_recording(path, like=VOLUME) if event.click is not None]
    assert events[0].click == Click((2, 9, 9), box=Box(3, 4, 15, 21))
    path.write_text(json.dumps({"clicks": [{"voxel": [2, 9, 9], "box": [3, 4, 15, 51]}]}))
    with pytest.raises(ClickError, match="expected one inside its slice"):
        read_recording(path, like=VOLUME)
    path.write_text(json.dumps({"clicks": [{"voxel": [2, 9, 9], "box": [3, 4, 3, 21]}]}))
    with pytest.raises((ClickError, ReadError), match="expected 4 whole numbers"):
        read_recording(path)


def test_an_answer_to_a_box_is_no_answer_to_a_first_click():
    session = Session(VOLUME, DiskSegmenter(2.0), FakePolicy())
    session.add(Click.around(Box(3, 4, 15, 21), Plane(0, 2)))
    session.accept(learn=False)
    assert np.isnan(session.pending[0].first_iou)
    session.add(Click((3, 30, 40)))
    session.accept(learn=False)
    assert session.pending[1].first_iou == 1.0
