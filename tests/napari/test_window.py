"""The whole path in a real window: real mouse, real keys. A window takes seconds, so each test does all it can in one."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Labels, Points
from qtpy.QtCore import QEvent, QPoint, QPointF, Qt
from qtpy.QtGui import QHelpEvent, QWheelEvent
from qtpy.QtWidgets import QApplication, QLabel, QPushButton, QStyle, QStyleOptionSpinBox, QToolTip

import napari
from napari_apprentice import files
from napari_apprentice._napari import bridge, click_layer
from napari_apprentice._napari import widget as widget_module
from napari_apprentice._napari.bridge import STRAIGHT
from napari_apprentice._napari.contributions import image_layer
from napari_apprentice._napari.engine import POLICIES
from napari_apprentice._napari.keys import KEYS
from napari_apprentice._napari.launch import open_window
from napari_apprentice._napari.panels import Chooser
from napari_apprentice._napari.placement import METADATA_KEY, apart, image_of, show_plane
from napari_apprentice._napari.widget import ApprenticeWidget
from napari_apprentice.fakes import DiskSegmenter
from napari_apprentice.types import Box, Click, Plane

CONTROL = Qt.KeyboardModifier.ControlModifier
SHIFT = Qt.KeyboardModifier.ShiftModifier
NONE = Qt.KeyboardModifier.NoModifier
LEFT, RIGHT = Qt.MouseButton.LeftButton, Qt.MouseButton.RightButton


@pytest.fixture
def open_docked(make_napari_viewer, hands, monkeypatch, engine):
    """Opens a window with files in it and the widget from the plugin menu."""
    monkeypatch.setattr(widget_module, "default_engine", engine)
    windows = []

    def open_it(*paths):
        viewer = make_napari_viewer(show=True)
        viewer.window.resize(1280, 800)
        for path in paths:
            viewer.open(path, plugin="napari-apprentice")
        _, widget = viewer.window.add_plugin_dock_widget("napari-apprentice", "Apprentice")
        windows.append(hands(viewer, widget))
        windows[-1].wait()
        return windows[-1]

    yield open_it
    for window in windows:
        window.widget.leave()
        assert window.widget.bridge.worker.join(60)


@pytest.fixture
def scan(tmp_path, volume):
    return files.save_image(tmp_path / "scan.nii.gz", volume)


@pytest.fixture
def window(open_docked, scan):
    made = open_docked(scan)
    made.press(made.widget.start)
    return made


def test_the_whole_path(window, engine, tmp_path, scan):
    viewer, widget = window.viewer, window.widget
    session, source = engine.session, files.read(scan)
    assert viewer.layers[0].name == "scan"
    plane = window.plane

    window.click(plane, 20, 20)
    window.click(plane, 26, 20, modifier=CONTROL)
    assert session.clicks == (Click((plane, 20, 20), True, 0), Click((plane, 26, 20), False, 0))
    assert widget.clicks.text() == "2 clicks"
    first = window.labels.data.copy()
    assert first[plane, 20, 20] == 1
    assert first[plane, 26, 20] == 0

    window.key(Qt.Key.Key_Z, CONTROL)  # the points layer is active
    assert len(session.clicks) == len(window.points.data) == 1
    window.activate(window.labels)
    window.key(Qt.Key.Key_Z, CONTROL)
    assert not window.labels.data.any()
    window.activate(viewer.layers[0])
    window.key(Qt.Key.Key_Z, CONTROL | SHIFT)
    window.key(Qt.Key.Key_Z, CONTROL | SHIFT)
    np.testing.assert_array_equal(window.labels.data, first)

    window.key(Qt.Key(ord(KEYS["accept"])))
    assert session.finished == (1,)
    assert widget.object.value() == 2
    assert widget.clicks.text() == "no clicks yet"
    assert len(window.points.data) == 0

    viewer.dims.set_current_step(0, viewer.dims.current_step[0] + 1)
    other = window.plane
    assert other != plane
    window.activate(window.points)
    window.click(other, 10, 40)
    assert session.clicks[-1] == Click((other, 10, 40), True, 0)

    viewer.dims.order = (2, 0, 1)
    column = window.plane
    window.click(2, 30, column)
    assert session.clicks[-1] == Click((2, 30, column), True, 2)
    np.testing.assert_array_equal(window.labels.data, session.labels)

    window.press(widget.save)
    saved = tmp_path / "scan_labels.nii.gz"
    np.testing.assert_array_equal(files.read_labels(saved), session.labels)
    np.testing.assert_allclose(files.read(saved).affine, source.affine)
    viewer.open(saved, plugin="napari-apprentice")
    assert isinstance(viewer.layers[-1], Labels)
    np.testing.assert_allclose(viewer.layers[-1].data_to_world((1, 2, 3)), viewer.layers[0].data_to_world((1, 2, 3)))


def test_clicks_land_on_the_voxel_in_every_view(window, engine):
    viewer = window.viewer
    for order in [(0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2, 0)]:
        viewer.dims.order = order
        for target in [(2, 8, 9), (5, 30, 41)]:
            voxel = tuple(window.plane if axis == order[0] else target[axis] for axis in range(3))
            window.click(*voxel)
            assert engine.session.clicks[-1] == Click(voxel, True, order[0])
            assert window.labels.data[voxel] == 1


@pytest.mark.filterwarnings("ignore:Non-orthogonal slicing")
def test_in_a_volume_that_stands_oblique_mouse_and_brush_reach_the_slice_that_is_shown(open_docked, engine, tmp_path, told):
    window = open_docked()
    data = np.random.default_rng(0).normal(100, 10, (8, 40, 50)).astype(np.float32)
    turn = np.array([[np.cos(0.3), 0, -np.sin(0.3)], [0, 1, 0], [np.sin(0.3), 0, np.cos(0.3)]])
    place = {"scale": (3, 0.5, 0.5), "rotate": turn, "units": ("mm",) * 3}
    layer = window.viewer.add_image(data, name="nib", **place)
    drawn = window.viewer.add_labels(np.zeros(data.shape, int), name="mine", **place)
    show_plane(window.viewer.dims, layer, Plane(0, 5))
    true = image_of(layer).affine
    window.press(window.widget.start)
    assert told()[-1] == STRAIGHT
    assert window.widget.bridge.plane == (0, 5)
    assert apart(drawn, layer) is None
    for axis, index in ((0, 5), (0, 2), (1, 3), (1, 31), (2, 4), (2, 44)):
        window.widget.bridge.take_clicks()
        show_plane(window.viewer.dims, layer, Plane(axis, index))
        np.testing.assert_array_equal(layer._slice.image.raw, np.take(data, index, axis))
        voxel = [4, 20, 25]
        voxel[axis] = index
        window.click(*voxel)
        assert engine.session.clicks[-1] == Click(tuple(voxel), True, axis)
        window.widget.bridge.discard()
        window.activate(window.viewer.layers["nib labels"])
        labels = window.viewer.layers["nib labels"]
        labels.mode, labels.brush_size = "paint", 1
        window.click(*voxel)
        assert np.argwhere(engine.session.labels).tolist() == [voxel]
        window.widget.bridge.discard()
        window.wait()
        assert not engine.session.labels.any()
    saved = tmp_path / "saved.nii.gz"
    window.widget.bridge.save(saved)
    window.wait()
    np.testing.assert_allclose(files.read(saved).affine, true, atol=1e-5)


def test_what_is_a_click_and_of_which_sign(window, engine, told):
    plane, points = window.plane, window.points
    window.click(plane, 20, 20)
    window.key(Qt.Key(ord(KEYS["switch_sign"])))
    assert window.widget.sign._negative.isChecked()
    window.click(plane, 20, 24)
    window.press(window.widget.sign._positive)
    window.click(plane, 20, 28, wait=False)
    window.click(plane, 20, 28, wait=False)  # no double click
    window.wait()
    assert [click.positive for click in engine.session.clicks] == [True, False, True, True]

    window.click(plane, 20, 32, button=RIGHT)
    start = window.pixel(plane, 20, 20)
    window.drag(start, start + QPoint(60, 40))
    assert window.pixel(plane, 20, 20) != start  # a drag pans
    window.drag(window.pixel(plane, 20, 20), window.pixel(plane, 20, 45), window.pixel(plane, 20, 20))  # nor is one that comes back a click
    points.mode = "select"
    window.click(plane, 20, 32)
    points.mode = "add"
    window.click(plane, -3, 20)
    window.viewer.dims.ndisplay = 3
    window.click(plane, 20, 20)
    assert told() == [click_layer.OUTSIDE, click_layer.IN_3D]
    assert len(engine.session.clicks) == len(points.data) == 4

    window.viewer.dims.ndisplay = 2
    window.click(plane, 20, 32)
    assert len(engine.session.clicks) == 5


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

    # answers wait while a stroke is being painted
    native, point = window.canvas.native, window.pixel(plane, 35, 40)
    window.qtbot.mousePress(native, LEFT, NONE, point)
    window.widget.bridge.click(Click((plane + 1, 20, 20)))
    window.wait()
    assert engine.session.labels[plane + 1, 20, 20] == 2
    assert window.labels.data[plane + 1, 20, 20] == 0
    window.qtbot.mouseRelease(native, LEFT, NONE, point)
    window.wait()
    assert window.labels.data[plane + 1, 20, 20] == 2
    np.testing.assert_array_equal(window.labels.data, engine.session.labels)

    # another layer comes in front in the middle of a stroke, and gets the release of the button
    window.qtbot.mousePress(native, LEFT, NONE, point)
    window.viewer.add_points(name="of another plugin")
    window.qtbot.mouseRelease(native, LEFT, NONE, point)
    window.widget.bridge.click(Click((plane + 1, 8, 20)))
    window.wait()
    assert window.labels.data[plane + 1, 8, 20] == 2
    np.testing.assert_array_equal(window.labels.data, engine.session.labels)

    # a number that the array of the layer cannot hold yet
    window.widget.bridge.select(100_000)
    window.wait()
    window.activate(window.labels)
    window.drag(window.pixel(plane, 35, 10), window.pixel(plane, 35, 20))
    assert engine.session.labels[plane, 35, 15] == 100_000
    np.testing.assert_array_equal(window.labels.data, engine.session.labels)


def test_a_double_click_on_start_opens_one_session(open_docked, scan, engine, photograph):
    window = open_docked(scan)
    widget, qtbot = window.widget, window.qtbot
    qtbot.mouseClick(widget.start, LEFT)
    qtbot.mouseClick(widget.start, LEFT)
    window.viewer.add_image(photograph.data[0], name="dropped meanwhile")
    assert widget.chosen_image.name == "scan"
    window.wait()
    assert widget.bridge.state is not None
    assert len(engine.sessions) == 1
    window.press(widget.start)
    qtbot.mouseClick(widget.start, LEFT)
    widget._started_at -= 60  # a minute later it is still loading
    qtbot.mouseClick(widget.start, LEFT)
    assert widget.start.text() == "Start"
    assert widget.image.isEnabled()
    window.wait()
    assert widget.bridge.state is None


def turn_wheel(widget, turn=-360):
    """Turn the wheel over a widget, by default towards the user."""
    where = QPointF(5, 5)
    about = (QPoint(), QPoint(0, turn), Qt.MouseButton.NoButton, NONE, Qt.ScrollPhase.NoScrollPhase, False)
    QApplication.sendEvent(widget, QWheelEvent(where, widget.mapToGlobal(where), *about))


def test_the_wheel_turns_a_number_only_after_a_click_into_it(window, engine):
    box = window.widget.object
    turn_wheel(box, 360)
    window.wait()
    assert box.value() == engine.session.label == 1


def test_a_stroke_that_another_layer_ended_does_not_go_on_without_a_button(window, engine):
    labels, native, plane = window.labels, window.canvas.native, window.plane
    window.activate(labels)
    labels.mode, labels.brush_size = "paint", 1
    start, stop = window.pixel(plane, 5, 30), window.pixel(plane, 5, 36)
    window.qtbot.mousePress(native, LEFT, NONE, start)
    window.qtbot.mouseMove(native, stop)
    window.activate(window.points)
    window.qtbot.mouseRelease(native, LEFT, NONE, stop)
    window.wait()
    assert engine.session.labels.any()
    window.activate(labels)
    for point in (stop, window.pixel(plane, 20, 36), window.pixel(plane, 30, 20)):
        window.qtbot.mouseMove(native, point)
    window.wait()
    np.testing.assert_array_equal(labels.data, engine.session.labels)
    assert not labels._block_history


def test_clicks_whose_layer_is_hidden_can_be_undone(window, engine):
    for column in (20, 25, 30):
        window.click(window.plane, 20, column)
    window.points.visible = False
    for left, words in ((2, "2 clicks"), (1, "1 click"), (0, "no clicks yet")):
        window.press(window.widget.undo)
        assert len(engine.session.clicks) == len(window.points.data) == left
        assert window.widget.clicks.text() == words


def test_the_window_stays_alive_while_the_model_works(open_docked, scan, engine, slow_engine, turns, told):
    engine.segmenter = slow_engine(turns).segmenter
    window = open_docked(scan)
    window.press(window.widget.start)
    window.click(window.plane, 20, 20)  # answered when the main thread has had turns enough
    assert told() == []
    assert len(engine.session.clicks) == 1
    assert window.labels.data[window.plane, 20, 20] == 1


def test_closing_the_dock_while_a_prediction_runs(open_docked, scan, engine, slow_engine):
    gate = threading.Event()
    engine.segmenter = slow_engine(gate=gate).segmenter
    window = open_docked(scan)
    window.press(window.widget.start)
    worker = window.widget.bridge.worker
    window.click(window.plane, 20, 20, wait=False)
    window.viewer.window.remove_dock_widget(window.widget)
    assert worker.alive, "it waited for the prediction, which waits for this test"
    assert not [layer for layer in window.viewer.layers if isinstance(layer, Points)]
    gate.set()
    assert worker.join(60)
    assert len(engine.session.clicks) == 1
    window.viewer.layers.clear()  # nobody listens any more


def test_closing_the_window_while_a_prediction_runs(open_docked, scan, engine, slow_engine):
    gate = threading.Event()
    engine.segmenter = slow_engine(gate=gate).segmenter
    window = open_docked(scan)
    window.press(window.widget.start)
    window.click(window.plane, 20, 20, wait=False)
    window.viewer.close()
    assert window.widget.bridge.worker.alive, "it waited for the prediction, which waits for this test"
    gate.set()
    window.widget.leave()
    assert window.widget.bridge.worker.join(60)
    assert len(engine.session.clicks) == 1


def test_closing_the_window_in_3d():
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np
from conftest import DiskEngine
from qtpy.QtTest import QTest
from napari_apprentice._napari.launch import open_window
from napari_apprentice.types import Image
viewer, widget = open_window(Image(np.random.default_rng(0).random((1, 8, 40, 50)), np.diag([2.0, 1, 1, 1]), "mm"), engine=DiskEngine())
widget.start.click()
while widget.bridge.worker.waiting:
    QTest.qWait(10)
viewer.dims.ndisplay = 3
QTest.qWait(200)
assert widget.bridge.state is not None
viewer.window._qt_window.close()
QTest.qWait(300)
"""
    ended = subprocess.run([sys.executable, "-c", script], check=True, timeout=120, capture_output=True, text=True)
    assert "Traceback" not in ended.stderr


def test_resume_is_offered_for_the_same_image_and_brings_it_back(open_docked, scan, engine):
    window = open_docked(scan)
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
    assert [layer.name for layer in window.viewer.layers] == ["scan", "scan labels", "scan clicks"]


def test_a_session_shows_its_own_network_as_long_as_it_is_open(open_docked, scan, engine, monkeypatch):
    monkeypatch.setattr(DiskSegmenter, "weights_path", Path("mine.safetensors"), raising=False)
    window = open_docked(scan)
    network = window.widget.model.network
    for shown in ("mine.safetensors", "unet"):
        window.press(window.widget.start)
        window.wait()
        assert network.currentText() == shown


def test_a_resumed_session_shows_its_own_study_and_policy(open_docked, scan, engine):
    window = open_docked(scan)
    widget = window.widget
    policy, study = widget.more.policy, widget.model.study
    study.setCurrentText("mri")
    policy.setCurrentIndex(policy.findData("pi"))
    window.press(widget.start)
    window.click(window.plane, 20, 20)
    window.press(widget.start)
    assert (study.currentText(), policy.currentData()) == ("mri", "pi")
    study.setCurrentText("")  # what the next start is to have
    policy.setCurrentIndex(0)
    window.press(widget.resume)
    assert (study.currentText(), policy.currentData()) == ("mri", "pi")
    assert not study.isEnabled()
    assert not policy.isEnabled()
    widget.model.unfold(True)  # the names of all studies are listed anew
    assert study.currentText() == "mri"
    widget.model.network_chosen.emit()
    window.wait()
    assert (engine.wishes[-1].cohort, engine.wishes[-1].policy) == ("mri", "pi")  # another network stays in the study
    window.press(widget.start)
    assert (study.currentText(), policy.currentIndex()) == ("", 0)
    assert study.isEnabled()
    assert policy.isEnabled()


def test_all_layers_can_be_selected_and_deleted_at_once(window, engine, told):
    qtbot, viewer, widget = window.qtbot, window.viewer, window.widget
    layer_list = viewer.window._qt_viewer.layers
    for delete in (
        lambda: qtbot.mouseClick(viewer.window._qt_viewer.layerButtons.deleteButton, LEFT),
        lambda: qtbot.keyClick(layer_list, Qt.Key.Key_Delete),
        viewer.layers.remove_selected,
    ):
        window.click(window.plane, 20, 20)
        journal, image = engine.session._journal.path, viewer.layers[0]
        written = len(journal.read_text().splitlines())
        viewer.layers.select_all()
        delete()
        window.wait()
        assert list(viewer.layers) == []
        assert widget.bridge.state is None
        assert len(journal.read_text().splitlines()) == written
        window.drawn()  # napari has to draw the empty canvas, or software OpenGL ends the process
        viewer.add_layer(image)
        window.wait()
        window.press(widget.resume)
        assert widget.clicks.text() == "1 click"
        window.press(widget.discard)
    assert told() == []


def test_all_that_is_folded_can_be_reached_on_a_small_screen(window):
    main, widget = window.viewer.window._qt_window, window.widget
    main.resize(1280, 720)
    for column in (12, 24, 36):
        window.click(window.plane, 20, column)
        window.press(widget.accept)
    window.settled()
    for fold, last in ((widget.objects, widget.objects.delete), (widget.model, widget.model.pictures), (widget.more, widget.more.upright)):
        window.press(fold.title)
        window.settled()
        assert (main.width(), main.height()) == (1280, 720)
        turn_wheel(widget._fold_area.viewport())
        assert last.visibleRegion().boundingRect().size() == last.size()
    turn_wheel(widget.more.device)  # it is for the panel
    assert widget.more.device.currentIndex() == 0
    main.resize(1280, 1000)
    window.settled()
    assert widget.more.policy.visibleRegion().boundingRect().size() == widget.more.policy.size()
    assert widget.more.upright.visibleRegion().boundingRect().size() == widget.more.upright.size()
    window.press(widget.more.title)
    assert not widget.more.isVisible()


def test_our_docks_share_a_place_and_the_window_does_not_grow(window):
    main, widget = window.viewer.window._qt_window, window.widget
    widget.model.unfold(True)
    window.settled()
    before = main.size()
    assert before.height() <= 800
    dock, table = window.viewer.window.add_plugin_dock_widget("napari-apprentice", "Measure objects")
    window.settled()
    assert main.size() == before
    assert main.tabifiedDockWidgets(widget.parent()) == [dock]
    assert not table.visibleRegion().isEmpty()  # it is the one in front
    assert widget.visibleRegion().isEmpty()

    for area in (Qt.DockWidgetArea.LeftDockWidgetArea, Qt.DockWidgetArea.RightDockWidgetArea):  # the user drags it away and back
        main.addDockWidget(area, dock)
        window.settled()
    assert main.tabifiedDockWidgets(widget.parent()) == []
    window.viewer.window.remove_dock_widget(dock)
    assert table.worker.join(60)

    main.addDockWidget(Qt.DockWidgetArea.LeftDockWidgetArea, widget.parent())
    dock, table = window.viewer.window.add_plugin_dock_widget("napari-apprentice", "Measure objects")
    assert main.dockWidgetArea(dock) == Qt.DockWidgetArea.RightDockWidgetArea
    assert main.tabifiedDockWidgets(dock) == []
    window.viewer.window.remove_dock_widget(dock)
    assert table.worker.join(60)


def test_the_chooser_follows_the_layers(open_docked, scan, tmp_path, photograph):
    window = open_docked(scan)
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


def test_choices_under_more_reach_the_engine(open_docked, scan, engine):
    window = open_docked(scan)
    widget, viewer = window.widget, window.viewer
    earlier = np.zeros((8, 40, 50), dtype=np.uint8)
    earlier[1, 2, 3] = 7
    viewer.add_labels(earlier, name="earlier")
    widget.more.unfold(True)
    widget.more.policy.setCurrentIndex(widget.more.policy.findData("pi"))
    widget.more.device.setCurrentText("cpu")
    widget.more.labels.setCurrentText("earlier")
    viewer.layers["earlier"].name = "by hand"
    viewer.add_labels(earlier, name="earlier")  # another one
    assert widget.more.labels.currentText() == "by hand"
    viewer.layers.move(2, 0)
    viewer.layers.remove("earlier")
    assert widget.more.labels.currentText() == "by hand"
    window.press(widget.start)
    wish = engine.wishes[-1]
    assert (wish.policy, wish.device, wish.resume) == ("pi", "cpu", None)
    assert engine.session.finished == (7,)
    assert widget.more.labels.currentIndex() == 0  # they were for this start
    assert widget.object.value() == 8
    assert window.labels.data[1, 2, 3] == 7
    widget.object.setValue(5)
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

    window.press(window.widget.start)  # now says "Close session"
    window.viewer.layers.clear()
    window.drawn()  # napari has to draw the empty canvas, or software OpenGL ends the process
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
    widget.model.unfold(True)
    window.press(widget.model.forget)
    assert engine.session._segmenter.radius == 5.0
    for button in widget.findChildren(QPushButton):
        assert button.focusPolicy() == Qt.FocusPolicy.NoFocus  # the keyboard stays with the canvas


def test_the_keyboard_stays_with_the_canvas(window, engine):
    widget, qtbot = window.widget, window.qtbot
    switch = Qt.Key(ord(KEYS["switch_sign"]))
    for fold, parts in (
        (widget.objects, (widget.objects.keep, widget.objects.other)),
        (widget.model, (widget.model.network, widget.model.pictures, widget.model.list.viewport())),
        (widget.more, (widget.more.device, widget.more.labels, widget.more.upright)),
    ):
        window.press(fold.title)
        window.settled()
        for part in (*parts, widget.object):
            qtbot.mouseClick(part, LEFT, NONE, QPoint(part.width() - 8, part.height() // 2))
            if isinstance(part, Chooser):  # its list is open
                qtbot.keyClick(part.view(), Qt.Key.Key_Return)
            window.wait()
            before = widget.bridge.positive
            window.key(switch)
            assert widget.bridge.positive is not before, part
    window.press(widget.start)
    window.press(widget.model.title)
    window.settled()
    qtbot.mouseClick(widget.model.study.lineEdit(), LEFT)
    qtbot.keyClicks(window.keyboard, "mri")
    qtbot.keyClick(window.keyboard, Qt.Key.Key_Return)
    window.press(widget.start)
    before = widget.bridge.positive
    window.key(switch)
    assert widget.bridge.positive is not before
    assert engine.wishes[-1].cohort == "mri"


def test_the_table_of_objects_leaves_the_keyboard_to_the_canvas(window, engine):
    qtbot, widget = window.qtbot, window.widget
    for plane, column in ((2, 10), (5, 35)):
        widget.bridge.show_slice(plane)
        window.click(plane, 20, column)
        window.key(Qt.Key(ord(KEYS["accept"])))
    window.click(5, 8, 8)
    dock, table = window.viewer.window.add_plugin_dock_widget("napari-apprentice", "Measure objects")
    window.settled()
    qtbot.mouseClick(table.start, LEFT)
    qtbot.waitUntil(lambda: table.worker.waiting == 0, timeout=30_000)
    view = table.view
    header, name = view.horizontalHeader(), table.table.columns.index("label")
    for column, wanted in ((name, (1, 2, 3)), (name, (3, 2, 1))):
        place = QPoint(header.sectionViewportPosition(column) + 8, header.height() // 2)
        qtbot.mouseClick(header.viewport(), LEFT, NONE, place)
        QApplication.processEvents()
        assert tuple(each["label"] for each in table.table.rows) == wanted
        for line, label in enumerate(wanted):
            qtbot.mouseClick(view.viewport(), LEFT, NONE, QPoint(20, view.rowViewportPosition(line) + 5))
            assert window.plane == (2 if label == 1 else 5)
            before = widget.bridge.positive
            window.key(Qt.Key(ord(KEYS["switch_sign"])))
            assert widget.bridge.positive is not before
    window.key(Qt.Key.Key_Z, CONTROL)
    assert not engine.session.clicks
    window.viewer.window.remove_dock_widget(dock)
    assert table.worker.join(60)


def test_a_step_of_a_number_gives_the_keyboard_back_and_typing_keeps_it(window, engine):
    widget, qtbot, session = window.widget, window.qtbot, engine.session
    window.click(window.plane, 20, 20)
    window.key(Qt.Key(ord(KEYS["accept"])))
    window.press(widget.objects.title)
    window.settled()
    for part in (widget.object, widget.objects.other):
        for up in (False, True, False):
            option = QStyleOptionSpinBox()
            part.initStyleOption(option)
            spot = QStyle.SubControl.SC_SpinBoxUp if up else QStyle.SubControl.SC_SpinBoxDown
            place = part.style().subControlRect(QStyle.ComplexControl.CC_SpinBox, option, spot, part).center()
            value = part.value()
            qtbot.mouseClick(part, LEFT, NONE, place)
            window.wait()
            assert part.value() == max(value + (1 if up else -1), 1)
            before = widget.bridge.positive
            window.key(Qt.Key(ord(KEYS["switch_sign"])))
            assert widget.bridge.positive is not before, (part, up)
    assert session.label == 1
    window.key(Qt.Key.Key_Z, CONTROL)
    assert not session.finished  # taken back although the number was pressed last

    widget.object.setValue(2)
    window.wait()
    qtbot.mouseClick(widget.object.lineEdit(), LEFT)
    qtbot.keyClick(window.keyboard, Qt.Key.Key_A, CONTROL)  # the click selects all in the active window only
    for key in "12":
        qtbot.keyClicks(window.keyboard, key)
        window.wait()
    assert session.label == 2  # until Return
    window.key(Qt.Key.Key_Return)
    assert session.label == 12
    before = widget.bridge.positive
    window.key(Qt.Key(ord(KEYS["switch_sign"])))
    assert widget.bridge.positive is not before


def test_the_mouse_comes_back_from_another_layer(window, engine):
    widget, plane = window.widget, window.plane
    window.activate(window.viewer.layers[0])
    assert "the mouse is with the layer 'scan' now" in widget.status.words
    window.click(plane, 20, 20)
    assert engine.session.clicks == ()
    window.activate(window.labels)
    assert "brush" in widget.status.words
    window.points.visible = False
    window.press(widget.sign.findChildren(QPushButton)[0])
    assert widget.status.words == "click inside an object, or draw a box around it with Shift"
    window.click(plane, 20, 20)
    assert engine.session.clicks == (Click((plane, 20, 20)),)


def test_words_are_shown_as_they_are(window):
    widget = window.widget
    for words in (widget.status.findChildren(QLabel)[0], widget.objects.counts):
        words.setText("1 × <b>")
        assert words.textFormat() == Qt.TextFormat.PlainText


def test_labels_of_another_image_do_not_lie_over_this_one(open_docked, scan, tmp_path, photograph):
    window = open_docked(scan)
    widget = window.widget
    window.press(widget.start)
    window.click(window.plane, 20, 20)
    left = window.labels
    window.press(widget.start)
    assert left.visible
    files.save_image(tmp_path / "photo.png", photograph)
    window.viewer.open(tmp_path / "photo.png", plugin="napari-apprentice")
    window.wait()
    window.press(widget.start)
    assert not left.visible
    assert widget.status.words == "click inside an object, or draw a box around it with Shift; the labels of the sessions before are hidden"
    assert window.labels.visible
    window.press(widget.start)
    widget.image.setCurrentIndex(0)
    window.wait()
    window.press(widget.resume)
    assert left.visible
    assert [layer.visible for layer in window.viewer.layers if layer.name == "photo labels"] == [False]


def test_a_long_choice_can_be_read_in_full(window):
    chooser = window.widget.more.policy
    window.press(window.widget.more.title)
    window.settled()
    ours, meaning = chooser.currentText(), chooser.toolTip()
    chooser.setCurrentIndex(chooser.findData("ia+pi"))
    text = chooser.currentText()
    assert chooser.fontMetrics().horizontalAdvance(text) > chooser.width()
    QApplication.sendEvent(chooser, QHelpEvent(QEvent.Type.ToolTip, QPoint(5, 5), chooser.mapToGlobal(QPoint(5, 5))))
    assert QToolTip.text() == f"{text}\n{meaning}"
    drawn = chooser.grab().toImage()
    chooser.setItemText(chooser.currentIndex(), text[:-10])  # what differs is out of sight
    assert chooser.grab().toImage() == drawn
    chooser.setItemText(chooser.currentIndex(), text)
    chooser.showPopup()
    assert chooser.view().width() >= chooser.fontMetrics().horizontalAdvance(text)
    chooser.hidePopup()
    chooser.setCurrentText(ours)


def test_the_names_of_the_policies_are_those_of_the_engine():
    from napari_apprentice import assembly

    assert set(POLICIES) == set(assembly.POLICIES)
    assert next(iter(POLICIES)) == assembly.DEFAULT_POLICY


@pytest.mark.parametrize(("theme", "upright"), [("dark", True), ("light", False)])
def test_launched_window_fits_a_small_screen_and_can_be_photographed(
    make_napari_viewer, monkeypatch, hands, volume, engine, theme, upright, tmp_path
):
    monkeypatch.setattr(napari, "Viewer", lambda **options: make_napari_viewer(show=True, **options))
    viewer, widget = open_window(volume, upright=upright, engine=engine)
    try:
        viewer.theme = theme
        viewer.window.resize(1280, 800)
        window = hands(viewer, widget)
        widget.more.unfold(True)
        window.press(widget.start)
        window.click(window.plane, 20, 20)
        assert viewer.window.geometry()[2:] <= (1280, 800)
        assert widget.more.upright.mapTo(widget, QPoint(0, 0)).y() < 700
        picture = viewer.window.screenshot(str(tmp_path / f"{theme}.png"), canvas_only=False)
        assert picture[..., :3].std() > 10  # something was drawn
        assert window.pixel(3, 0, 20).y() != window.pixel(3, 39, 20).y()
        assert (window.pixel(3, 0, 20).y() > window.pixel(3, 39, 20).y()) == upright
    finally:
        widget.leave()
        assert widget.bridge.worker.join(60)


def test_a_second_window_shows_what_the_first_one_does_and_offers_nothing_else(window, engine, volume, told):
    window.click(window.plane, 20, 20)
    folder = engine.session._journal.path.parent
    first = engine.session
    other = ApprenticeWidget(ViewerModel(), engine)
    data, arguments, _ = image_layer(files.read(window.viewer.layers[0].metadata[METADATA_KEY].path))
    other._viewer.add_image(data, **arguments)
    window.qtbot.waitUntil(lambda: other.resume.isEnabled() and not other.bridge.worker.waiting, timeout=30_000)
    other.resume.click()
    window.qtbot.waitUntil(lambda: not other.bridge.worker.waiting, timeout=30_000)
    assert other.status.words.startswith(f"Read only: the folder {folder.name!r} is in use by this very process")
    changing = (other.accept, other.discard, other.undo, other.propagate, other.approve, other.object, other.sign, other.objects)
    assert not any(each.isEnabled() for each in changing)
    assert other.save.isEnabled()
    assert other.clicks.text() == "1 click"
    assert other.bridge.state.header == first.header
    engine.sessions.append(first)
    window.key(Qt.Key(ord(KEYS["accept"])))
    assert first.finished == (1,)
    other.leave()
    assert other.bridge.worker.join(60)


def test_device_and_memory_are_shown(window):
    assert window.widget.status.machine.count("GB") == 1
    window.widget.status.show_device("cuda:0")
    assert window.widget.status.machine.startswith("cuda:0  ·  ")
    window.press(window.widget.start)
    assert "cuda" not in window.widget.status.machine


def test_a_drag_with_shift_draws_a_box_around_the_object(window, engine, told):
    plane, session = window.plane, engine.session
    there = window.pixel(plane, 20, 20)
    band = window.points._overlays["selection_box"]
    seen = []
    window.drag(
        window.pixel(plane, 30, 41), window.pixel(plane, 9, 12), modifier=SHIFT, each=lambda: seen.append((band.visible, band.bounds))
    )
    ((visible, (low, high)),) = seen
    assert visible
    assert np.allclose((*low, *high), (9, 12, 30, 41), atol=0.5)  # to the pixel of the screen
    assert not band.visible
    assert window.points.mouse_pan
    assert window.pixel(plane, 20, 20) == there  # nothing panned
    assert session.clicks == (Click.around(Box(9, 12, 31, 42), Plane(0, plane)),)
    assert (window.labels.data[plane, 9:31, 12:42] == 1).all()
    assert (window.labels.data == 1).sum() == 22 * 30
    assert [str(symbol) for symbol in window.points.symbol] == ["square"]

    window.key(Qt.Key.Key_Z, CONTROL)
    assert not window.labels.data.any()
    window.viewer.dims.order = (2, 0, 1)
    plane = window.plane
    window.drag(window.pixel(1, -3, plane), window.pixel(4, 12, plane), modifier=SHIFT)  # beyond the image
    assert session.clicks == (Click.around(Box(1, 0, 5, 13), Plane(2, plane)),)
    window.drag(window.pixel(1, -5, plane), window.pixel(4, -3, plane), modifier=SHIFT)
    assert told() == [click_layer.OUTSIDE]
    window.click(4, 20, plane, modifier=SHIFT)  # no drag: a click
    assert session.clicks[-1] == Click((4, 20, plane), True, 2)
    assert len(session.clicks) == 2
    window.viewer.dims.ndisplay = 3
    window.drag(window.pixel(1, 3, plane), window.pixel(4, 12, plane), modifier=SHIFT)
    assert len(session.clicks) == 2


def test_beyond_the_image_there_is_no_slice_to_keep(window, told):
    image = window.viewer.layers[0]
    window.click(window.plane, 20, 20)
    window.viewer.add_image(np.zeros((20, 40, 50)), scale=np.abs(image.scale), translate=(-20, 0, 0), units=image.units)
    window.activate(window.points)
    window.viewer.dims.set_point(0, -20)
    window.key(Qt.Key(ord(KEYS["approve"])))
    assert told() == [bridge.BEYOND]


def test_a_box_around_an_accepted_object_is_no_click_into_it(window, engine, told):
    plane, session = window.plane, engine.session
    window.click(plane, 20, 20)
    window.key(Qt.Key(ord(KEYS["accept"])))
    window.drag(window.pixel(plane, 5, 5), window.pixel(plane, 35, 35), modifier=SHIFT)
    assert session.labels[plane, 20, 20] == 1
    assert (session.labels[plane, 5:36, 5:36] == 2).sum() == 31 * 31 - (session.labels[plane] == 1).sum()
    assert "belongs to object 1" not in window.widget.status.words
    window.key(Qt.Key.Key_Z, CONTROL)
    window.drag(window.pixel(plane, 18, 18), window.pixel(plane, 22, 22), modifier=SHIFT)
    assert "this place belongs to object 1" in window.widget.status.words


def test_a_box_names_no_part_of_an_object_that_is_split(window, engine):
    plane = window.plane
    window.click(plane, 20, 20)
    window.key(Qt.Key(ord(KEYS["accept"])))
    window.widget.bridge.select(1)
    window.wait()
    window.widget.bridge.split()
    window.drag(window.pixel(plane, 18, 18), window.pixel(plane, 22, 22), modifier=SHIFT)
    assert len(window.points.data) == 0
    assert "click once in every part" in window.widget.status.words


def test_a_view_that_is_turned_while_a_box_is_drawn_gives_none(window, engine, told):
    plane = window.plane

    def turn():
        window.viewer.dims.order = (1, 0, 2)

    window.drag(window.pixel(plane, 5, 5), window.pixel(plane, 35, 35), modifier=SHIFT, each=turn)
    assert engine.session.clicks == ()
    assert told() == [click_layer.OTHER_PLANE]


def test_where_time_runs_along_a_side_of_the_view_there_is_no_box(window, engine, told):
    image = window.viewer.layers[0]
    window.viewer.add_image(np.zeros((3, *image.data.shape)), scale=(1, *np.abs(image.scale)), units=("pixel", *image.units))
    window.activate(window.points)
    window.viewer.dims.order = (2, 3, 0, 1)
    window.viewer.reset_view()
    middle = window.canvas.native.rect().center()
    window.drag(middle, middle + QPoint(40, 40), modifier=SHIFT)
    assert engine.session.clicks == ()
    assert told() == [click_layer.OTHER_PLANE]
