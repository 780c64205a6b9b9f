"""The bridge with a viewer that has no window: everything but the mouse."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Labels, Points

from napari_apprentice import files
from napari_apprentice._napari.bridge import IMAGE_REPLACED, IMAGE_RESCALED, LAYERS_REMOVED, MADE_WITH, Bridge
from napari_apprentice._napari.contributions import image_layer
from napari_apprentice._napari.engine import Wish
from napari_apprentice._napari.keys import KEYS
from napari_apprentice._napari.sitting import LABELS_KEPT
from napari_apprentice.fakes import DiskSegmenter, FakePolicy
from napari_apprentice.journal import read_journal
from napari_apprentice.session import resume
from napari_apprentice.types import Click, SessionError


class Desk:
    """A viewer, a bridge with an open session, and short words for what tests do with them."""

    def __init__(self, qtbot, image, engine, wish=None) -> None:
        self.qtbot, self.engine, self.image = qtbot, engine, image
        self.viewer = ViewerModel()
        data, arguments, _ = image_layer(image)
        self.image_layer = self.viewer.add_image(data, **arguments)
        self.bridge = Bridge(self.viewer, engine)
        self.bridge.start(self.image_layer, wish or Wish())
        self.wait()

    def wait(self) -> None:
        self.qtbot.waitUntil(lambda: self.bridge.worker.waiting == 0, timeout=30_000)

    @property
    def labels(self) -> Labels:
        return next(layer for layer in self.viewer.layers if isinstance(layer, Labels))

    @property
    def points(self) -> Points:
        return next(layer for layer in self.viewer.layers if isinstance(layer, Points))

    @property
    def session(self):
        return self.engine.session

    def click(self, *voxel, positive=True, axis=0) -> None:
        self.bridge.click(Click(voxel, positive, axis))

    def check_equal(self) -> None:
        """What is shown is what the session has."""
        np.testing.assert_array_equal(self.labels.data, self.session.labels)
        shown = sorted((*map(int, row), bool(sign)) for row, sign in zip(self.points.data, self.points.features["positive"], strict=True))
        assert shown == sorted((*click.voxel, click.positive) for click in self.session.clicks)

    def close(self) -> None:
        self.bridge.close()
        self.bridge.close()  # Qt may close it a second time, with the window
        assert self.bridge.worker.join(60)


@pytest.fixture
def desk(qtbot, volume, engine):
    made = Desk(qtbot, volume, engine)
    yield made
    made.close()


@pytest.fixture
def desks(qtbot):
    """Makes desks of one's own, and closes them."""
    made = []

    def make(*args):
        made.append(Desk(qtbot, *args))
        return made[-1]

    yield make
    for each in made:
        each.close()


# --- the layers ---


def test_both_layers_stand_where_the_image_stands(desk):
    for layer in (desk.labels, desk.points):
        np.testing.assert_allclose(layer.data_to_world((1, 2, 3)), desk.image_layer.data_to_world((1, 2, 3)))
        assert layer.units == desk.image_layer.units
        assert layer.axis_labels == desk.image_layer.axis_labels
    assert desk.viewer.layers.selection.active == desk.points
    assert desk.points.mode == "add"
    assert desk.labels.preserve_labels


@pytest.mark.parametrize("resume", [False, True])
def test_the_image_comes_in_front_of_those_that_cover_it_and_its_labels_in_front_of_it(desk, resume):
    layer, folder = closed_with_work(desk)
    if not resume:
        desk.viewer.layers.remove(layer)
    viewer, other = desk.viewer, desk.viewer.add_labels(np.zeros(desk.image_layer.data.shape, int), name="my notes")
    viewer.add_image(desk.image_layer.data, name="hidden", visible=False, scale=desk.image_layer.scale)
    viewer.add_image(desk.image_layer.data, name="another", scale=desk.image_layer.scale)
    desk.image_layer.visible = False
    for _ in range(2):  # what is in front already stays where it is
        names = resumed(desk, folder if resume else None)
        assert names[:5] == ["my notes", "hidden", "another", "scan", "scan labels"]
        assert names[-1] == "scan clicks"
        assert desk.image_layer.visible
        assert (viewer.layers[4] is layer) is resume
        desk.bridge.stop()
        desk.wait()
    assert other.visible
    assert not viewer.layers["hidden"].visible


def test_the_labels_layer_shares_no_memory_with_the_session(desk):
    desk.click(2, 20, 20)
    desk.wait()
    assert not np.shares_memory(desk.labels.data, desk.session.labels)
    desk.labels.data[:] = 0
    assert desk.session.labels.any()


def test_clicks_show_as_points_of_their_sign_and_size_in_screen_pixels(desk):
    desk.click(2, 20, 20)
    desk.click(2, 25, 20, positive=False)
    desk.wait()
    desk.check_equal()
    assert desk.points.canvas_size_limits[1] < 20
    colors = np.asarray(desk.points.face_color)
    assert not np.allclose(colors[0], colors[1])
    assert desk.points.symbol[0] != desk.points.symbol[1]


def test_only_the_clicks_made_across_the_viewed_axis_are_shown(desk):
    desk.click(2, 20, 20, axis=0)
    desk.click(2, 22, 20, axis=1)
    desk.wait()
    np.testing.assert_array_equal(desk.points.shown, [True, False])
    desk.viewer.dims.order = (1, 0, 2)
    np.testing.assert_array_equal(desk.points.shown, [False, True])


def test_ids_beyond_the_type_of_the_layer_widen_it(desks, volume, engine):
    labels = np.zeros(volume.shape, dtype=np.uint16)
    labels[0, 0, 0] = 2**15 - 1
    desk = desks(volume, engine, Wish(labels=labels))
    assert desk.labels.data.dtype == np.uint16
    desk.bridge.select(2**16 + 5)
    desk.click(2, 20, 20)
    desk.wait()
    desk.check_equal()
    assert desk.labels.data.max() == 2**16 + 5


# --- actions ---


def test_every_action_leaves_the_layer_as_the_session_is(desk):
    desk.click(2, 20, 20)
    desk.click(2, 24, 24, positive=False)
    desk.bridge.accept()
    desk.click(5, 10, 30)
    desk.bridge.discard()
    desk.click(5, 12, 30, axis=2)
    desk.bridge.undo()
    desk.bridge.undo()
    desk.wait()
    desk.check_equal()
    desk.bridge.redo()
    desk.wait()
    desk.check_equal()
    assert desk.session.finished == (1,)
    assert desk.bridge.state.label == 2


def test_undo_and_redo_are_the_identity_on_what_is_shown(desk):
    pictures = [desk.labels.data.copy()]
    for col in (10, 20, 30):
        desk.click(3, 20, col)
        desk.wait()
        pictures.append(desk.labels.data.copy())
    for picture in pictures[-2::-1]:
        desk.bridge.undo()
        desk.wait()
        np.testing.assert_array_equal(desk.labels.data, picture)
    for picture in pictures[1:]:
        desk.bridge.redo()
        desk.wait()
        np.testing.assert_array_equal(desk.labels.data, picture)


def test_accepting_shows_at_once_and_then_the_model_learns(desk):
    said, states = [], []
    desk.bridge.said.connect(said.append)
    desk.bridge.state_changed.connect(states.append)
    desk.click(2, 20, 20)
    desk.bridge.accept()
    desk.wait()
    assert "learning from object 1 …" in said
    assert said[-1].startswith("learnt from")
    assert states[-2].label == states[-1].label == 2
    assert desk.session.pending == ()
    before = (desk.labels.data == 1).sum()
    desk.click(5, 20, 20)
    desk.wait()
    assert (desk.labels.data == 2).sum() > before  # the disks have grown


def test_what_cannot_be_done_is_said_and_changes_nothing(desk, told):
    desk.bridge.accept()
    desk.wait()
    assert any("neither clicks nor voxels" in sentence for sentence in told())
    desk.check_equal()
    said = []
    desk.bridge.said.connect(said.append)
    desk.bridge.undo()
    desk.bridge.redo()
    assert said == ["there is nothing to undo", "there is nothing to redo"]


def test_a_click_in_another_object_says_whose_the_place_is(desk):
    said = []
    desk.bridge.said.connect(said.append)
    desk.click(2, 20, 20)
    desk.bridge.accept()
    desk.wait()
    before = desk.labels.data.copy()
    desk.click(2, 20, 20, positive=False)
    desk.wait()
    assert said[-1] == "this place belongs to object 1, protected since it was accepted; Shift+O over it opens it"
    np.testing.assert_array_equal(desk.labels.data, before)
    assert len(desk.session.clicks) == 1  # it counts, and is journaled
    assert [event.kind for event in read_journal(desk.session._journal.path)[1]][-1] == "add"
    desk.click(2, 5, 40)
    desk.wait()
    assert said[-1].startswith("good? press G")

    desk.bridge.accept()
    desk.bridge.select(1)
    desk.wait()
    desk.bridge.name("cup {0} {x}")
    desk.bridge.accept()
    desk.bridge.select(9)
    desk.wait()
    desk.bridge._key_choice.bound = {**desk.bridge.keys, "open_here": "Shift-B"}
    desk.click(2, 20, 20)
    desk.wait()
    assert said[-1] == "this place belongs to object 1 (cup {0} {x}), protected since it was accepted; Shift+B over it opens it"

    desk.click(6, 20, 20)
    desk.bridge.select(10)  # object 9 was never accepted
    desk.click(6, 20, 20)
    desk.wait()
    assert said[-1] == "this place belongs to object 9, which is not the open one; Shift+B over it opens it"
    desk.check_equal()


def test_a_click_that_fails_disappears_and_the_next_one_counts(desks, volume, told, make_engine):
    policy = FakePolicy(failing="click", error=SessionError("the model is tired; expected a rested one"))
    desk = desks(volume, make_engine(policy=lambda: policy))
    desk.click(2, 20, 20)
    desk.wait()
    assert told() == ["the model is tired; expected a rested one"]
    assert len(desk.points.data) == 0
    policy.failing = None
    desk.click(2, 22, 20)
    desk.wait()
    desk.check_equal()


def test_an_unexpected_error_is_one_sentence_too(desks, volume, told, caplog, make_engine):
    desk = desks(volume, make_engine(policy=lambda: FakePolicy(failing="click")))
    desk.click(2, 20, 20)
    desk.wait()
    assert told() == ["Something unexpected went wrong (RuntimeError: told to fail); the session is as it was before."]
    assert caplog.records[-1].exc_info


# --- late answers ---


def test_fast_clicks_are_all_honoured_and_only_the_newest_picture_is_drawn(desks, volume, slow_engine):
    gate = threading.Event()
    desk = desks(volume, slow_engine(gate=gate))
    pictures = []
    desk.labels.events.set_data.connect(lambda: pictures.append(int((desk.labels.data > 0).sum())))
    clicks = [(2, 20, 5 + 4 * number) for number in range(8)]
    for click in clicks:
        desk.click(*click)
    assert len(desk.points.data) == 8  # at once
    assert not desk.labels.data.any()
    gate.set()
    desk.wait()
    assert [click.voxel for click in desk.session.clicks] == clicks
    desk.check_equal()
    assert set(pictures) == {int((desk.session.labels > 0).sum())}


def test_answers_of_a_closed_session_are_dropped(desks, volume, slow_engine):
    gate = threading.Event()
    desk = desks(volume, slow_engine(gate=gate))
    old = desk.labels
    desk.click(2, 20, 20)
    desk.bridge.stop()
    desk.bridge.start(desk.image_layer, Wish())
    gate.set()
    desk.wait()
    assert len(desk.engine.sessions) == 2
    assert desk.engine.sessions[0].clicks  # done and journaled,
    assert not old.data.any()  # but not shown
    assert not desk.labels.data.any()
    assert desk.bridge.state.clicks == ()


def test_a_session_that_comes_too_late_is_closed_and_not_shown(qtbot, volume, engine):
    gate = threading.Event()

    def slow_to_open(image, wish, folder):
        assert gate.wait(30)
        return engine(image, wish, folder)

    viewer = ViewerModel()
    data, arguments, _ = image_layer(volume)
    layer = viewer.add_image(data, **arguments)
    bridge = Bridge(viewer, slow_to_open)
    bridge.start(layer, Wish())
    assert bridge.opening
    bridge.stop()
    gate.set()
    qtbot.waitUntil(lambda: bridge.worker.waiting == 0, timeout=30_000)
    assert len(viewer.layers) == 1
    with pytest.raises(Exception, match="cannot be written"):
        engine.session.add(Click((2, 20, 20)))  # its journal is closed
    bridge.close()
    assert bridge.worker.join(60)


def test_closing_while_a_prediction_runs_returns_at_once_and_the_click_is_kept(desks, volume, slow_engine):
    gate = threading.Event()
    desk = desks(volume, slow_engine(gate=gate))
    desk.click(2, 20, 20)
    desk.bridge.close()
    assert desk.bridge.worker.alive, "it waited for the prediction, which waits for this test"
    gate.set()
    assert desk.bridge.worker.join(60)
    assert len(desk.session.clicks) == 1


def test_the_main_thread_has_its_turns_while_the_model_works(desks, volume, slow_engine, turns, told):
    """Every prediction waits until the main thread has had some, and none of these is long."""
    desk = desks(volume, slow_engine(gate=turns))
    desk.click(2, 20, 10)
    desk.wait()
    turns.begin()  # after what is done for the first time only
    for col in (20, 30, 40):
        desk.click(2, 20, col)
    desk.bridge.accept()
    desk.wait()
    assert told() == []
    assert (desk.session.finished, desk.session.label) == ((1,), 2)
    assert turns.count >= 3 * turns.WANTED
    assert turns.longest_s < 0.2


# --- painting by hand ---


def paint(labels: Labels, voxels, label: int) -> None:
    labels.data_setitem(tuple(np.array(voxels).T), label)


def test_painting_reaches_the_session_and_its_undo(desk):
    desk.click(2, 20, 20)
    desk.wait()
    before = desk.labels.data.copy()
    paint(desk.labels, [(2, 30, 30), (2, 31, 31)], 1)
    desk.wait()
    desk.check_equal()
    assert desk.session.labels[2, 30, 30] == 1
    desk.labels.undo()  # napari's own door
    desk.wait()
    np.testing.assert_array_equal(desk.labels.data, before)
    desk.check_equal()
    desk.labels.redo()
    desk.wait()
    assert desk.session.labels[2, 31, 31] == 1
    desk.check_equal()


def test_painting_while_an_answer_is_on_its_way_loses_neither(desks, volume, slow_engine):
    gate = threading.Event()
    desk = desks(volume, slow_engine(gate=gate))
    desk.click(2, 20, 20)
    paint(desk.labels, [(2, 18, 5), (2, 22, 40)], 1)  # a box across the disk that is to come
    gate.set()
    desk.wait()
    desk.check_equal()
    assert desk.session.labels[2, 20, 20] == desk.session.labels[2, 18, 5] == 1


def test_the_stroke_stays_visible_while_earlier_answers_come_in(desk):
    shown = []
    desk.click(2, 20, 20)
    paint(desk.labels, [(2, 20, 22)], 0)
    paint(desk.labels, [(2, 5, 5)], 1)
    desk.bridge.state_changed.connect(lambda _: shown.append(int(desk.labels.data[2, 5, 5])))
    desk.wait()
    assert set(shown) == {1}
    desk.check_equal()


def test_an_object_accepted_meanwhile_is_not_painted_over(desks, volume, slow_engine):
    gate = threading.Event()
    desk = desks(volume, slow_engine(gate=gate))
    desk.click(2, 20, 20)
    desk.bridge.accept()
    paint(desk.labels, [(2, 20, 20), (2, 30, 30)], 2)  # where the disk is not shown yet
    gate.set()
    desk.wait()
    assert desk.session.labels[2, 20, 20] == 1
    assert desk.session.labels[2, 30, 30] == 2
    desk.check_equal()


def test_painting_that_the_session_refuses_is_taken_off_the_layer(desk, monkeypatch, told):
    def refuse(*_):
        raise SessionError("no painting today; expected clicks")

    monkeypatch.setattr(desk.session, "paint", refuse)
    paint(desk.labels, [(2, 5, 5)], 1)
    desk.wait()
    assert told() == ["no painting today; expected clicks"]
    assert desk.labels.data[2, 5, 5] == 0


def test_deleting_the_only_click_undoes_it(desk):
    desk.click(2, 20, 20)
    desk.wait()
    desk.points.selected_data = {0}
    desk.points.remove_selected()
    desk.wait()
    assert desk.session.clicks == ()
    desk.check_equal()


def test_the_brush_paints_the_open_object(desk):
    desk.click(2, 20, 20)
    desk.bridge.accept()
    desk.wait()
    assert desk.labels.selected_label == 2
    desk.bridge.select(1)
    desk.wait()
    assert desk.labels.selected_label == 1


def test_the_brush_keeps_the_label_that_the_user_chose(desk):
    desk.click(2, 20, 20)
    desk.wait()
    desk.labels.selected_label = 7
    for col in (5, 9):
        paint(desk.labels, [(2, 5, col)], desk.labels.selected_label)
        desk.wait()
    assert desk.session.labels[2, 5, 9] == desk.labels.selected_label == 7
    desk.bridge.accept()
    desk.wait()
    assert desk.labels.selected_label == desk.session.label == 8


def test_napari_s_history_cannot_bring_stale_labels_back_after_the_session(desk):
    paint(desk.labels, [(2, 5, 5)], 1)
    desk.click(2, 20, 20)
    desk.wait()
    labels = desk.labels
    desk.bridge.stop()
    shown = labels.data.copy()
    labels.undo()
    np.testing.assert_array_equal(labels.data, shown)


def test_a_replaced_array_is_put_back(desk, told):
    desk.click(2, 20, 20)
    desk.wait()
    desk.labels.data = np.ones((3, 4, 5), dtype=np.uint8)
    desk.wait()
    assert told() == [LABELS_KEPT]
    desk.check_equal()


def test_an_answer_that_comes_after_the_array_was_replaced_is_not_lost(desk, told):
    desk.click(2, 20, 20)
    desk.labels.data = np.ones((3, 4, 5), dtype=np.uint8)
    desk.wait()
    assert told() == [LABELS_KEPT]
    assert len(desk.session.clicks) == 1
    assert desk.session.labels.any()
    desk.check_equal()


def test_what_is_painted_counts_where_another_layer_takes_the_button(desk):
    desk.viewer.layers.selection.active = desk.labels
    with desk.labels.block_history():  # as napari's brush, between press and release
        desk.labels.paint((2, 30, 30), 1)
        desk.viewer.layers.selection.active = desk.points
        desk.wait()
        assert desk.session.labels[2, 30, 30] == 1
        desk.check_equal()
    desk.click(2, 20, 20)
    desk.wait()
    desk.check_equal()


def test_there_is_no_object_in_an_array_that_somebody_put_there(desk):
    desk.click(2, 20, 20)
    desk.wait()
    shown = desk.bridge._sitting.desk
    assert shown.label_of((2, 20, 20)) == 1
    desk.labels.data = np.ones((3, 4, 5), dtype=np.uint8)
    assert shown.label_of((2, 20, 20)) == 0
    desk.wait()
    assert shown.label_of((2, 20, 20)) == 1


# --- an image that others move ---


def test_labels_and_clicks_stay_on_the_image_whoever_is_moved(desk, told):
    def together() -> bool:
        at = [tuple(layer.data_to_world((1, 2, 3))) for layer in (desk.image_layer, desk.labels, desk.points)]
        return np.allclose(at, at[0])

    assert together()
    desk.image_layer.translate = (0, 20, 3)
    assert together()
    desk.image_layer.affine = np.diag([1.0, 2.0, 1.0, 1.0])
    assert together()
    place = desk.image_layer.data_to_world((1, 2, 3))
    desk.labels.translate = (5, 5, 5)
    desk.points.affine = np.diag([1.0, 3.0, 1.0, 1.0])
    assert together()
    np.testing.assert_allclose(desk.image_layer.data_to_world((1, 2, 3)), place)
    desk.image_layer.scale = desk.image_layer.scale
    assert told() == [IMAGE_RESCALED], "the affine of twice the size"
    for units in ("um", "nm"):
        desk.image_layer.units = (units,) * 3
        assert together()
        assert desk.labels.units == desk.points.units == desk.image_layer.units
    assert told() == [IMAGE_RESCALED], "once"
    labels = desk.labels
    desk.bridge.stop()
    labels.translate = (0, 0, 0)
    assert not np.allclose(labels.data_to_world((1, 2, 3)), desk.image_layer.data_to_world((1, 2, 3))), "it is the user's now"


def test_an_image_whose_pixels_were_replaced_is_told(desk, told):
    desk.image_layer.data = desk.image_layer.data
    assert told() == []
    for _ in range(2):
        desk.image_layer.data = desk.image_layer.data * 0
    assert told() == [IMAGE_REPLACED]
    desk.click(2, 20, 20)
    desk.wait()
    desk.check_equal()


# --- points that others edit ---


def test_points_that_a_script_adds_are_clicks(desk):
    desk.bridge.positive = False
    desk.points.add([(2.2, 19.7, 20)])
    desk.wait()
    assert desk.session.clicks == (Click((2, 20, 20), positive=False),)
    desk.check_equal()


def test_deleting_the_newest_point_is_undo(desk):
    desk.click(2, 20, 20)
    desk.click(2, 30, 30)
    desk.wait()
    desk.points.selected_data = {1}
    desk.points.remove_selected()
    desk.wait()
    assert [click.voxel for click in desk.session.clicks] == [(2, 20, 20)]
    desk.check_equal()


def test_deleting_an_older_point_is_refused_and_moving_one_as_well(desk, told):
    desk.click(2, 20, 20)
    desk.click(2, 30, 30)
    desk.wait()
    desk.points.selected_data = {0}
    desk.points.remove_selected()
    desk.points.data = np.array([(2, 21, 20), (2, 30, 30)])
    desk.wait()
    desk.check_equal()
    assert len(desk.session.clicks) == 2
    assert ["newest one can go" in told()[0], "stay where they were made" in told()[1]] == [True, True]


# --- the life of a session ---


def test_keys_are_given_back(desk):
    image_layer_keys = dict(desk.image_layer.keymap)
    assert len(image_layer_keys) == len(KEYS)
    desk.bridge.stop()
    assert dict(desk.image_layer.keymap) == {}


@pytest.mark.parametrize("which", ["image", "labels", "points"])
def test_removing_one_of_the_layers_closes_the_session(desk, which, told):
    layer = {"image": desk.image_layer, "labels": desk.labels, "points": desk.points}[which]
    labels = desk.labels
    desk.viewer.layers.remove(layer)
    assert desk.bridge.state is None
    desk.qtbot.waitUntil(lambda: told() == [LAYERS_REMOVED], timeout=30_000)
    assert (labels in desk.viewer.layers) == (which != "labels")  # what was done is not thrown away
    assert not any(isinstance(each, Points) for each in desk.viewer.layers)


def test_the_layers_of_a_session_can_be_removed_one_after_the_other(desk, told):
    desk.click(2, 20, 20)
    desk.wait()
    labels = desk.session.labels
    for layer in (desk.labels, desk.image_layer, desk.points):  # as napari does it with all that are selected
        desk.viewer.layers.remove(layer)
    desk.qtbot.wait(20)
    assert desk.bridge.state is None
    assert told() == []
    desk.viewer.add_layer(desk.image_layer)
    folder = desk.session._journal.path.parent
    desk.bridge.start(desk.image_layer, Wish(resume=folder))
    desk.wait()
    np.testing.assert_array_equal(desk.labels.data, labels)


def test_a_viewer_that_empties_itself_is_no_problem(desk, told):
    desk.viewer.layers.clear()
    desk.qtbot.wait(20)
    assert len(desk.viewer.layers) == 0
    assert desk.bridge.state is None
    assert told() == []


def test_resuming_brings_clicks_and_labels_back(desk):
    found = []
    desk.click(2, 20, 20)
    desk.bridge.accept()
    desk.click(3, 10, 10, positive=True)
    desk.wait()
    expected = desk.session.labels.copy()
    desk.bridge.stop()
    desk.bridge.earlier_found.connect(lambda layer, folder: found.append((layer, folder)))
    desk.bridge.look_for_earlier(desk.image_layer)
    desk.wait()
    desk.bridge.start(desk.image_layer, Wish(resume=found[0][1]))
    desk.wait()
    assert found[0][0] is desk.image_layer
    newest = [layer for layer in desk.viewer.layers if isinstance(layer, Labels)][-1]
    np.testing.assert_array_equal(newest.data, expected)
    np.testing.assert_array_equal(desk.points.data, [(3, 10, 10)])
    desk.bridge.undo()
    desk.wait()
    assert len(desk.points.data) == 0


def closed_with_work(desk):
    """The layer and the folder that a closed session leaves."""
    desk.click(2, 20, 20)
    desk.bridge.accept()
    desk.click(3, 10, 10)
    desk.wait()
    layer, folder = desk.labels, desk.session._journal.path.parent
    desk.bridge.stop()
    desk.wait()
    return layer, folder


def resumed(desk, folder):
    """Names of the layers after resuming."""
    desk.bridge.start(desk.image_layer, Wish(resume=folder))
    desk.wait()
    return [layer.name for layer in desk.viewer.layers]


def test_a_resumed_session_goes_on_in_the_layer_that_it_left(desk):
    layer, folder = closed_with_work(desk)
    layer.name, layer.visible, layer.opacity = "mine", False, 0.9
    for _ in range(2):
        assert resumed(desk, folder) == ["scan", "mine", "scan clicks"]
        assert desk.labels is layer
        assert (layer.visible, layer.opacity) == (True, 0.9)
        desk.check_equal()
        desk.click(5, 30, 30)
        desk.wait()
        paint(layer, [(1, 1, 1)], desk.bridge.state.label)
        desk.wait()
        desk.check_equal()
        assert desk.session.labels[1, 1, 1]
        desk.labels.undo()
        desk.wait()
        assert not desk.session.labels[1, 1, 1]
        desk.bridge.stop()
        desk.wait()
    assert not [each for each in desk.viewer.layers if isinstance(each, Points)]
    desk.bridge.start(desk.image_layer, Wish())  # another session has a layer of its own
    desk.wait()
    assert [each.name for each in desk.viewer.layers] == ["scan", "mine", "scan labels", "scan clicks"]


def test_a_session_that_goes_on_with_other_weights_says_so(desk, engine, told):
    engine.model = "disks:1"
    desk.bridge.stop()
    desk.wait()
    desk.bridge.start(desk.image_layer, Wish())
    desk.wait()
    _, folder = closed_with_work(desk)
    labels = desk.session.labels.copy()
    for model, sentences in (("disks:1", []), ("disks:2", [MADE_WITH.format("disks:1")])):
        engine.model = model
        resumed(desk, folder)
        assert told() == sentences
        assert np.array_equal(desk.session.labels, labels)
        desk.bridge.stop()
        desk.wait()


@pytest.mark.parametrize("change", ["stroke", "undone stroke", "new array", "by a script", "moved", "stale"])
def test_a_layer_that_somebody_changed_since_is_left_alone(desk, change):
    layer, folder = closed_with_work(desk)
    if "stroke" in change:
        paint(layer, [(0, 0, 0)], 7)
        if change == "undone stroke":
            layer.undo()
    elif change == "new array":
        layer.data = layer.data.copy()
    elif change == "by a script":
        layer.data[0, 0, 0] = 7
    elif change == "moved":
        layer.translate = np.add(layer.translate, 5)
    else:
        resume(folder, desk.image, DiskSegmenter(), FakePolicy()).undo()
    before = layer.data.copy()
    assert resumed(desk, folder) == ["scan", "scan labels", "scan labels [1]", "scan clicks"]
    assert layer.visible
    desk.bridge.undo()
    desk.wait()
    np.testing.assert_array_equal(layer.data, before)


@pytest.mark.parametrize("change", [None, "stroke", "by a script"])
def test_a_layer_that_lacks_the_last_answer_is_gone_on_with_unless_somebody_changed_it(desks, volume, slow_engine, change):
    gate = threading.Event()
    desk = desks(volume, slow_engine(gate=gate))
    layer, folder = desk.labels, desk.session._journal.path.parent
    desk.click(2, 20, 20)
    desk.bridge.stop()
    gate.set()
    if change is None:
        desk.bridge.start(desk.image_layer, Wish(resume=folder))  # at once: the answer has not come yet
    desk.wait()
    if change == "stroke":
        paint(layer, [(0, 0, 0)], 7)
    elif change == "by a script":
        layer.data[0, 0, 0] = 7
    if change is not None:
        assert resumed(desk, folder) == ["scan", "scan labels", "scan labels [1]", "scan clicks"]
        assert layer.data.sum() == 7
        return
    assert [each.name for each in desk.viewer.layers] == ["scan", "scan labels", "scan clicks"]
    assert desk.labels is layer
    assert layer.data.any()
    desk.check_equal()


def test_what_is_painted_while_the_session_is_opened_is_left_as_well(desk):
    layer, folder = closed_with_work(desk)
    copy = desk.viewer.add_labels(
        layer.data.copy(), name="copy", metadata=dict(layer.metadata), scale=layer.scale, translate=layer.translate
    )
    desk.bridge.start(desk.image_layer, Wish(resume=folder))
    paint(layer, [(0, 0, 0)], 7)
    desk.wait()
    assert layer.data[0, 0, 0] == 7
    assert [each.name for each in desk.viewer.layers] == ["scan", "scan labels", "copy", "scan labels [1]", "scan clicks"]
    desk.click(5, 30, 30)
    desk.wait()
    assert not copy.data[5].any()


def test_a_session_that_goes_on_with_another_model_leaves_its_layer_as_its_own(desk):
    closed_with_work(desk)
    first = desk.session._journal
    resumed(desk, first.path.parent)
    desk.bridge.change_model(Wish())
    desk.wait()
    second = desk.session._journal.path.parent
    assert second != first.path.parent
    desk.bridge.stop()
    desk.wait()
    assert resumed(desk, second) == ["scan", "scan labels", "scan clicks"]


def test_an_engine_that_fails_leaves_the_viewer_as_it_was(qtbot, volume, engine, told):
    engine.error = SessionError("no weights; expected some")
    viewer = ViewerModel()
    data, arguments, _ = image_layer(volume)
    bridge = Bridge(viewer, engine)
    bridge.start(viewer.add_image(data, **arguments), Wish())
    qtbot.waitUntil(lambda: bridge.worker.waiting == 0, timeout=30_000)
    assert told() == ["no weights; expected some"]
    assert (len(viewer.layers), bridge.opening, bridge.state) == (1, False, None)
    bridge.close()
    assert bridge.worker.join(60)


def test_labels_of_another_shape_are_refused_with_one_sentence(qtbot, volume, engine, told):
    viewer = ViewerModel()
    data, arguments, _ = image_layer(volume)
    bridge = Bridge(viewer, engine)
    bridge.start(viewer.add_image(data, **arguments), Wish(labels=np.zeros((3, 3, 3), dtype=np.uint8)))
    qtbot.waitUntil(lambda: bridge.worker.waiting == 0, timeout=30_000)
    assert "(3, 3, 3)" in told()[0]
    assert "(8, 40, 50)" in told()[0]
    bridge.close()
    assert bridge.worker.join(60)


def test_a_series_is_refused_before_anything_is_loaded(qtbot, engine, told):
    viewer = ViewerModel()
    bridge = Bridge(viewer, engine)
    bridge.start(viewer.add_image(np.zeros((2, 3, 4, 5))), Wish())
    assert "expected a 2D image or a 3D volume" in told()[0]
    assert not bridge.opening
    bridge.close()
    assert bridge.worker.join(60)


# --- saving ---


@pytest.mark.parametrize("name", ["out.nii.gz", "out.mha", "out.tif"])
def test_saved_labels_read_back_with_the_geometry_of_the_image(desk, tmp_path, name):
    desk.click(2, 20, 20)
    desk.bridge.save(tmp_path / name)
    desk.wait()
    np.testing.assert_array_equal(files.read_labels(tmp_path / name), desk.session.labels)
    if not name.endswith("tif"):
        np.testing.assert_allclose(files.read(tmp_path / name).affine, desk.image.affine, atol=1e-5)


def test_only_files_that_it_wrote_itself_are_its_own(desk, tmp_path):
    path = tmp_path / "out.tif"
    assert desk.bridge.may_write(path)
    desk.bridge.save(path)
    desk.wait()
    assert desk.bridge.may_write(path)
    path.write_bytes(b"somebody else's")
    assert not desk.bridge.may_write(path)


def test_a_failed_save_is_told_and_the_session_goes_on(desk, tmp_path, told):
    desk.click(2, 20, 20)
    desk.bridge.save(tmp_path / "nowhere" / "out.tif")
    desk.wait()
    assert "folder does not exist" in told()[0]
    desk.check_equal()


def test_forgetting_is_undoable_and_leaves_the_labels(desk):
    desk.click(2, 20, 20)
    desk.bridge.accept()
    desk.wait()
    taught, shown = desk.session._segmenter.radius, desk.labels.data.copy()
    desk.bridge.forget()
    desk.wait()
    assert desk.session._segmenter.radius == 5.0 < taught
    np.testing.assert_array_equal(desk.labels.data, shown)
    desk.bridge.undo()
    desk.wait()
    assert desk.session._segmenter.radius == taught


# --- two windows on one session ---


def test_the_second_window_may_look_and_save_but_change_nothing(desk, desks, engine, told, tmp_path):
    desk.click(2, 20, 20)
    desk.bridge.accept()
    desk.click(3, 20, 20)
    desk.wait()
    folder = desk.session._journal.path.parent
    first = desk.session
    second = desks(desk.image, engine, Wish(resume=folder))
    sentence = told()[-1]
    assert sentence.startswith(f"Read only: the folder {folder.name!r} is in use by this very process")
    assert second.bridge.state.read_only
    np.testing.assert_array_equal(second.labels.data, desk.labels.data)
    assert not second.labels.editable
    assert second.points.mode == "pan_zoom"

    before = second.labels.data.copy()
    for act in (second.bridge.accept, second.bridge.undo, second.bridge.propagate, lambda: second.click(4, 10, 10)):
        act()
        second.wait()
        assert told()[-1] == second.bridge.state.read_only
    np.testing.assert_array_equal(second.labels.data, before)
    assert len(second.points.data) == 1
    second.bridge.save(tmp_path / "copy.nii.gz")
    second.wait()
    np.testing.assert_array_equal(files.read_labels(tmp_path / "copy.nii.gz"), before)

    engine.sessions.append(first)
    desk.click(3, 24, 24)
    desk.wait()
    desk.check_equal()
    labels = second.labels
    second.bridge.stop()
    assert labels.editable
    desk.bridge.stop()
    desk.wait()
    third = desks(desk.image, engine, Wish(resume=folder))
    assert not third.bridge.state.read_only
    assert len(third.session.clicks) == 2


def test_a_click_need_not_wait_for_learning(desks, volume, make_engine):
    gate, begun = threading.Event(), threading.Event()

    class Slow(FakePolicy):
        def learning(self, segmenter, lesson):
            yield
            begun.set()
            gate.wait(30)
            yield
            report = self.on_accept(segmenter, lesson)
            yield
            return report

    desk = desks(volume, make_engine(policy=lambda: Slow(0, 0.5)))

    desk.click(2, 20, 20)
    desk.wait()
    before = desk.session._segmenter.radius
    desk.bridge.accept()
    assert begun.wait(30)
    desk.click(2, 10, 10)
    desk.click(2, 12, 10)
    gate.set()
    desk.wait()
    kinds = [event.kind for event in read_journal(desk.session._ledger.journal.path)[1]]
    assert kinds[-4:] == ["accept", "add", "add", "learn"]
    assert desk.session._segmenter.radius == before + 0.5
    desk.check_equal()


def test_the_model_practises_while_the_user_clicks_and_the_next_lesson_takes_it_over(desks, volume, make_engine, qtbot):
    desk = desks(volume, make_engine(policy=lambda: FakePolicy(0, 0.5, 0.25)))
    desk.click(2, 20, 20)
    desk.bridge.accept()
    desk.wait()
    taught = desk.session._segmenter.radius
    qtbot.waitUntil(lambda: not desk.bridge.worker.occupied, timeout=30_000)  # all four steps of it
    assert desk.session._segmenter.radius == taught
    desk.click(2, 10, 10)
    desk.wait()
    assert desk.session._segmenter.radius == taught
    desk.bridge.accept()
    desk.wait()
    assert desk.session._segmenter.radius == taught + 0.5 + 4 * 0.25
    assert desk.session.versions.current.report.practised == 4
    desk.check_equal()


def test_nothing_waits_for_practice_and_nothing_says_that_it_goes_on(desks, volume, make_engine, qtbot):
    class Endless(FakePolicy):
        def practising(self, segmenter, most=None):
            while True:
                steps.append(segmenter.snapshot())
                yield

    steps: list[object] = []
    desk = desks(volume, make_engine(policy=lambda: Endless(0, 0.5)))
    qtbot.waitUntil(lambda: len(steps) > 2, timeout=30_000)
    busy: list[bool] = []
    desk.bridge.worker.activity_changed.connect(lambda words: busy.append(bool(words)))
    qtbot.wait(50)
    assert busy == []
    desk.click(2, 20, 20)
    desk.wait()
    desk.bridge.accept()
    desk.bridge.undo()
    desk.wait()
    assert busy[-1] is False
    desk.check_equal()
    desk.bridge.stop()
    qtbot.waitUntil(lambda: not desk.bridge.worker.occupied, timeout=30_000)
