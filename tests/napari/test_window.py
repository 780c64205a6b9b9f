"""Mouse and keyboard in a real window. One viewer serves all these tests, each with a widget of its own."""

from __future__ import annotations

import time

import numpy as np
import pytest
from qtpy.QtCore import QPoint, Qt, QTimer
from qtpy.QtWidgets import QPushButton

import napari
from napari_apprentice import files
from napari_apprentice._napari import click_layer
from napari_apprentice._napari.keys import KEYS
from napari_apprentice._napari.widget import ApprenticeWidget
from napari_apprentice.types import Click

CONTROL = Qt.KeyboardModifier.ControlModifier
NONE = Qt.KeyboardModifier.NoModifier
LEFT, RIGHT = Qt.MouseButton.LeftButton, Qt.MouseButton.RightButton


@pytest.fixture(scope="module")
def shared_viewer(qapp):
    viewer = napari.Viewer(show=True)
    viewer.window.resize(1280, 800)
    yield viewer
    viewer.close()


@pytest.fixture
def scan(tmp_path, volume):
    return files.save_image(tmp_path / "scan.nii.gz", volume)


@pytest.fixture
def open_window(shared_viewer, hands, engine):
    """Docks a widget beside some files; everything is gone again afterwards."""
    made = []

    def open_it(*paths):
        for path in paths:
            shared_viewer.open(path, plugin="napari-apprentice")
        widget = ApprenticeWidget(shared_viewer, engine)
        shared_viewer.window.add_dock_widget(widget, name="Apprentice")
        made.append(widget)
        window = hands(shared_viewer, widget)
        window.wait()
        return window

    yield open_it
    for widget in made:
        shared_viewer.window.remove_dock_widget(widget)
        assert widget.bridge.worker.join(10)
    shared_viewer.layers.clear()
    shared_viewer.dims.ndisplay = 2
    shared_viewer.dims.order = tuple(range(shared_viewer.dims.ndim))


@pytest.fixture
def window(open_window, scan):
    made = open_window(scan)
    made.press(made.widget.start)
    return made


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2, 0)])
def test_clicks_land_on_the_voxel_in_every_view(window, engine, order):
    viewer = window.viewer
    viewer.dims.order = order
    where = np.rint(viewer.layers[0].world_to_data(viewer.dims.point)).astype(int)
    for target in [(2, 8, 9), (5, 30, 41)]:
        voxel = [where[axis] if axis == order[0] else target[axis] for axis in range(3)]
        window.click(*voxel)
        assert engine.session.clicks[-1] == Click(tuple(voxel), True, order[0])
        assert window.labels.data[tuple(voxel)] == 1


def test_the_toggle_and_its_key_change_the_sign_of_a_plain_click(window, engine):
    plane = window.plane
    window.click(plane, 20, 20)
    window.key(Qt.Key(ord(KEYS["switch_sign"])))
    assert window.widget.sign._negative.isChecked()
    window.click(plane, 20, 24)
    window.press(window.widget.sign._positive)
    window.click(plane, 20, 28)
    assert [click.positive for click in engine.session.clicks] == [True, False, True]


def test_a_drag_pans_and_other_buttons_do_nothing(window, engine):
    start = window.pixel(window.plane, 20, 20)
    window.drag(start, start + QPoint(60, 40))
    assert window.pixel(window.plane, 20, 20) != start
    window.click(window.plane, 20, 20, button=RIGHT)
    assert engine.session.clicks == ()
    assert len(window.points.data) == 0


def test_clicks_that_cannot_be_used_are_told_and_change_nothing(window, engine, told):
    window.click(window.plane, -3, 20)
    assert told() == [click_layer.OUTSIDE]
    window.viewer.dims.ndisplay = 3
    window.click(window.plane, 20, 20)
    assert told() == [click_layer.OUTSIDE, click_layer.IN_3D]
    assert engine.session.clicks == ()
    assert len(window.points.data) == 0


def test_two_fast_clicks_at_one_place_are_two_clicks(window, engine):
    window.click(window.plane, 20, 20, wait=False)
    window.click(window.plane, 20, 20, wait=False)
    window.wait()
    assert len(engine.session.clicks) == 2


def test_napari_s_select_tool_does_not_click_and_the_add_tool_comes_back(window, engine):
    window.points.mode = "select"
    window.click(window.plane, 20, 20)
    assert engine.session.clicks == ()
    window.points.mode = "add"
    window.click(window.plane, 20, 20)
    assert len(engine.session.clicks) == 1


def test_the_brush_reaches_the_session_and_leaves_accepted_objects_alone(window, engine):
    plane = window.plane
    window.click(plane, 20, 20)
    window.key(Qt.Key(ord(KEYS["accept"])))
    accepted = engine.session.labels == 1
    window.activate(window.labels)
    window.labels.mode = "paint"
    window.labels.brush_size = 5
    window.drag(window.pixel(plane, 20, 10), window.pixel(plane, 20, 40))
    assert engine.session.labels[plane, 20, 38] == 2
    np.testing.assert_array_equal(engine.session.labels == 1, accepted)
    np.testing.assert_array_equal(window.labels.data, engine.session.labels)
    window.key(Qt.Key.Key_Z, CONTROL)
    assert not (window.labels.data == 2).any()
    np.testing.assert_array_equal(window.labels.data, engine.session.labels)


def test_answers_wait_while_a_stroke_is_being_painted(window, engine, monkeypatch):
    window.activate(window.labels)
    window.labels.mode = "paint"
    native, point = window.canvas.native, window.pixel(window.plane, 35, 40)
    window.qtbot.mousePress(native, LEFT, NONE, point)
    window.widget.bridge.click(Click((3, 20, 20)))
    window.wait()
    assert engine.session.labels[3, 20, 20] == 1
    assert window.labels.data[3, 20, 20] == 0
    window.qtbot.mouseRelease(native, LEFT, NONE, point)
    window.wait()
    assert window.labels.data[3, 20, 20] == 1
    np.testing.assert_array_equal(window.labels.data, engine.session.labels)


def test_buttons_leave_the_keyboard_to_the_canvas(window):
    for button in window.widget.findChildren(QPushButton):
        assert button.focusPolicy() == Qt.FocusPolicy.NoFocus


def test_the_window_stays_alive_while_the_model_works(open_window, scan, engine, slow_engine):
    engine.segmenter = slow_engine(1.0).segmenter
    window = open_window(scan)
    window.press(window.widget.start)
    moments, timer = [], QTimer()
    timer.timeout.connect(lambda: moments.append(time.perf_counter()))
    timer.start(5)
    window.click(window.plane, 20, 20, wait=False)
    moments.clear()
    window.wait()
    timer.stop()
    assert moments[-1] - moments[0] > 0.8
    assert np.diff(moments).max() < 0.5  # drawing in software, on whatever machine, included


def test_resume_is_offered_for_the_same_image_and_brings_it_back(open_window, scan, engine):
    window = open_window(scan)
    widget = window.widget
    assert not widget.resume.isEnabled()
    window.press(widget.start)
    window.click(window.plane, 20, 20)
    shown = window.labels.data.copy()
    window.press(widget.start)  # now says "Close session"
    window.wait()
    assert widget.resume.isEnabled()
    window.press(widget.resume)
    np.testing.assert_array_equal(window.labels.data, shown)
    assert widget.clicks.text() == "1 click"
    assert engine.wishes[-1].resume is not None


def test_the_chooser_follows_the_layers(open_window, scan, tmp_path, photograph):
    window = open_window(scan)
    viewer, chooser = window.viewer, window.widget.image
    viewer.open(files.save_image(tmp_path / "photo.png", photograph), plugin="napari-apprentice")
    names = lambda: [chooser.itemText(i) for i in range(chooser.count())]  # noqa: E731
    assert names() == ["scan", "photo"]
    assert chooser.currentText() == "photo"
    viewer.layers["photo"].name = "fundus"
    assert names() == ["scan", "fundus"]
    chooser.setCurrentIndex(0)
    viewer.layers.remove("fundus")
    assert names() == ["scan"]
    viewer.layers.remove("scan")
    assert names() == []
    assert not window.widget.start.isEnabled()


def test_choices_under_more_reach_the_engine(open_window, scan, engine):
    window = open_window(scan)
    widget, viewer = window.widget, window.viewer
    earlier = np.zeros((8, 40, 50), dtype=np.uint8)
    earlier[1, 2, 3] = 7
    viewer.add_labels(earlier, name="earlier")
    widget.more.unfold(True)
    widget.more.policy.setCurrentIndex(widget.more.policy.findData("pi"))
    widget.more.device.setCurrentText("cpu")
    widget.more.labels.setCurrentText("earlier")
    window.press(widget.start)
    wish = engine.wishes[-1]
    assert (wish.policy, wish.device, wish.resume) == ("pi", "cpu", None)
    assert engine.session.finished == (7,)
    assert widget.object.value() == 8
    assert window.labels.data[1, 2, 3] == 7


def test_the_object_box_opens_another_object(window, engine):
    window.click(window.plane, 20, 20)
    window.widget.object.setValue(5)
    window.wait()
    assert engine.session.label == 5
    window.click(window.plane, 30, 30)
    assert window.labels.data[window.plane, 30, 30] == 5


def test_a_file_of_somebody_else_is_not_overwritten_without_asking(window, engine, tmp_path, monkeypatch):
    target, asked = tmp_path / "scan_labels.nii.gz", []
    target.write_bytes(b"precious")
    monkeypatch.setattr(window.widget, "_ask_whether", lambda path: asked.append(path))
    window.press(window.widget.save)
    assert (asked, target.read_bytes()) == ([target], b"precious")
    target.unlink()
    window.press(window.widget.save)
    window.press(window.widget.save)  # its own file it may
    assert asked == [target]
    assert files.read_labels(target).shape == engine.session.labels.shape


def test_an_image_without_a_file_is_saved_where_the_user_says(open_window, tmp_path, monkeypatch):
    window = open_window()
    window.viewer.add_image(np.random.default_rng(0).normal(size=(30, 40)), name="drawn")
    monkeypatch.setattr(window.widget, "_ask_where", lambda proposal: tmp_path / "chosen.png")
    window.press(window.widget.start)
    window.click(15, 20)
    window.press(window.widget.save)
    assert files.read_labels(tmp_path / "chosen.png")[15, 20] == 1


def test_the_buttons_do_what_they_say(window, engine):
    widget = window.widget
    window.click(window.plane, 20, 20)
    window.press(widget.undo)
    assert engine.session.clicks == ()
    window.press(widget.redo)
    assert len(engine.session.clicks) == 1
    window.press(widget.discard)
    assert not engine.session.labels.any()
    window.click(window.plane, 20, 20)
    window.press(widget.accept)
    assert engine.session.finished == (1,)
    assert widget.status.words.startswith("learnt from")
    widget.more.unfold(True)
    window.press(widget.more.forget)
    assert engine.session._segmenter.radius == 5.0
