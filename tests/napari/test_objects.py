"""Whole objects in the window: kept slices, the strip, classes, deleting, merging, splitting. By the bridge alone, and with real keys."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Labels
from qtpy.QtCore import QPoint, Qt
from qtpy.QtWidgets import QApplication, QVBoxLayout, QWidget

from napari_apprentice import files
from napari_apprentice._napari import widget as widget_module
from napari_apprentice._napari.bridge import Bridge
from napari_apprentice._napari.contributions import image_layer
from napari_apprentice._napari.engine import Wish
from napari_apprentice._napari.keys import KEYS
from napari_apprentice._napari.objects_panel import ObjectsPanel
from napari_apprentice._napari.panels import button
from napari_apprentice._napari.placement import same_placement
from napari_apprentice._napari.strip import SLICE_COLORS, SliceStrip
from napari_apprentice.ground import Slice
from napari_apprentice.legend import Legend, legend_path, read_legend
from napari_apprentice.types import Click, Plane

LEFT = Qt.MouseButton.LeftButton
SHIFT = Qt.KeyboardModifier.ShiftModifier
ACCEPTED, CARRIED, DOUBTFUL, EMPTY = Slice.ACCEPTED, Slice.CARRIED, Slice.DOUBTFUL, Slice.EMPTY


@pytest.fixture
def opened(qtbot, engine, tube):
    """A viewer and a bridge with a session on the tube, `wait` and the labels that are shown."""
    viewer = ViewerModel()
    data, arguments, _ = image_layer(tube)
    layer = viewer.add_image(data, **arguments)
    bridge = Bridge(viewer, engine)
    bridge.words, bridge.views = [], []
    bridge.said.connect(bridge.words.append)
    bridge.slices_found.connect(bridge.views.append)
    bridge.wait = lambda: qtbot.waitUntil(lambda: bridge.worker.waiting == 0, timeout=30_000)
    bridge.start(layer, Wish())
    bridge.wait()
    bridge.labels = lambda: next(layer for layer in viewer.layers if isinstance(layer, Labels)).data
    yield viewer, bridge
    bridge.close()
    assert bridge.worker.join(60)


def test_a_kept_slice_is_accepted_and_stays(opened, engine):
    viewer, bridge = opened
    bridge.click(Click((4, 20, 24)))
    bridge.accept()
    bridge.propagate()
    bridge.wait()
    viewer.dims.set_point(0, viewer.layers[0].data_to_world((6, 0, 0))[0])
    bridge.approve()
    bridge.find_slices()
    bridge.wait()
    assert bridge.views[-1].slices[4] == bridge.views[-1].slices[6] == ACCEPTED
    assert set(bridge.views[-1].slices) <= {ACCEPTED, CARRIED, DOUBTFUL}
    assert bridge.views[-1].flipped
    assert Plane(0, 6) not in {doubt.plane for doubt in bridge.state.doubts}
    bridge.undo()
    bridge.wait()
    assert Plane(0, 6) in {doubt.plane for doubt in bridge.state.doubts}


def test_accepting_corrections_carries_them_on(opened, engine):
    _, bridge = opened
    bridge.click(Click((4, 20, 24)))
    bridge.accept()
    bridge.propagate()
    bridge.select(1)
    bridge.wait()
    going = []
    bridge.propagating_changed.connect(going.append)
    bridge.accept()  # nothing was corrected
    bridge.wait()
    assert not going
    bridge.select(1)
    bridge.click(Click((6, 30, 26)))
    bridge.accept()
    bridge.wait()
    bridge.wait()
    assert going == [True, False]
    assert engine.session.outdated(1) == ()
    assert Plane(0, 6) not in {doubt.plane for doubt in engine.session.doubtful()}
    np.testing.assert_array_equal(bridge.labels(), engine.session.labels)


def begun_from(labels, qtbot, engine, tube, **options):
    """A widget with a session that started from a labels layer, and `wait`."""
    viewer = ViewerModel()
    widget = widget_module.ApprenticeWidget(viewer, engine)
    qtbot.addWidget(widget)
    data, arguments, _ = image_layer(tube)
    layer = viewer.add_image(data, **arguments)
    viewer.add_labels(labels, name="earlier", **options, **same_placement(layer))
    widget.more.labels.setCurrentText("earlier")

    def wait():
        qtbot.waitUntil(lambda: widget.bridge.worker.waiting == 0, timeout=30_000)

    widget.start.click()
    wait()
    return widget, wait


@pytest.mark.parametrize("largest", [7, 70_000, 3_000_000_000])
def test_objects_may_have_any_number_that_a_session_takes(qtbot, engine, tube, largest):
    labels = np.zeros(tube.shape, np.uint32)
    labels[1, 2, 3], labels[5, 2:6, 3:6] = 2, largest
    widget, wait = begun_from(labels, qtbot, engine, tube)
    assert widget.object.value() == engine.session.label == largest + 1
    widget.object.setValue(largest)
    wait()
    assert engine.session.label == largest
    widget.objects.other.setValue(largest - 1)
    widget.objects.relabel.click()
    wait()
    assert set(np.unique(engine.session.labels)) == {0, 2, largest - 1}
    assert widget.object.value() == largest - 1
    widget.leave()
    assert widget.bridge.worker.join(60)


def test_a_session_starts_from_the_full_resolution_of_labels(qtbot, engine, tube):
    labels = np.zeros(tube.shape, np.uint8)
    labels[5, 2:6, 3:6] = 4
    widget, _ = begun_from([labels, labels[:, ::2, ::2]], qtbot, engine, tube, multiscale=True)
    np.testing.assert_array_equal(engine.session.labels, labels)
    widget.leave()
    assert widget.bridge.worker.join(60)


def test_objects_are_split_merged_renumbered_named_and_deleted(opened, engine):
    viewer, bridge = opened
    for column in (10, 14):
        bridge.click(Click((4, 20, column)))
    bridge.split()
    bridge.click(Click((4, 20, 9)))
    bridge.click(Click((4, 20, 15)))
    assert not engine.session.clicks[2:]
    bridge.split()
    bridge.wait()
    assert sorted(np.unique(engine.session.labels)) == [0, 1, 2]
    assert engine.session.labels[4, 20, 9] == 1
    assert engine.session.labels[4, 20, 15] == 2
    bridge.name("nucleus")
    bridge.relabel(7)
    bridge.wait()
    assert bridge.state.label == 7
    assert bridge.state.legend.names == {7: "nucleus"}
    layer = next(layer for layer in viewer.layers if isinstance(layer, Labels))
    assert layer.features.to_dict("list") == {"index": [7], "class": ["nucleus"]}
    assert "nucleus" in layer.get_status(viewer.layers[0].data_to_world((4, 20, 9)), world=True)["value"]
    bridge.merge(2)
    bridge.wait()
    assert set(np.unique(bridge.labels())) == {0, 2}
    np.testing.assert_array_equal(bridge.labels(), engine.session.labels)
    bridge.select(2)
    bridge.wait()
    bridge.delete()
    bridge.wait()
    assert not bridge.labels().any()
    for _ in range(6):
        bridge.undo()
    bridge.wait()
    assert set(np.unique(bridge.labels())) == {0, 1}


def test_a_picked_object_is_opened(opened):
    viewer, bridge = opened
    bridge.click(Click((4, 20, 20)))
    bridge.accept()
    bridge.wait()
    layer = next(layer for layer in viewer.layers if isinstance(layer, Labels))
    layer.mode = "pick"
    layer.selected_label = 1
    bridge.wait()
    assert bridge.state.label == 1
    assert bridge.state.finished == ()
    viewer.cursor.position = (0, 0, 0)
    bridge.open_here()
    assert "no object" in bridge.words[-1]


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("count", [4, 1000])
def test_the_strip_shows_and_finds_slices(qtbot, flipped, count):
    strip = SliceStrip()
    qtbot.addWidget(strip)
    strip.resize(200, 16)
    slices = [EMPTY] * count
    slices[1], slices[3] = DOUBTFUL, ACCEPTED
    strip.show_slices(slices, flipped=flipped)
    for index in (0, 1, count - 1):
        assert abs(strip.index_at(strip.middle_of(index)) - index) <= count // 200
    drawn = strip.grab().toImage()
    for index in (1, 3):
        assert drawn.pixelColor(strip.middle_of(index), 8).name() in {SLICE_COLORS[DOUBTFUL], SLICE_COLORS[slices[index]]}
    assert drawn.pixelColor(strip.middle_of(1), 8).name() == SLICE_COLORS[DOUBTFUL]


def test_of_a_long_class_the_beginning_is_shown(qtbot):
    window, panel = QWidget(), ObjectsPanel()
    QVBoxLayout(window).addWidget(panel)
    qtbot.addWidget(window)
    window.show()
    QApplication.setActiveWindow(window)
    panel.unfold(True)
    panel.show_object(1, Legend(), "")
    field = panel.name.lineEdit()
    qtbot.mouseClick(field, LEFT)
    qtbot.keyClicks(field, "left atrium, appendage and pulmonary veins")
    assert field.cursorPosition() > 0
    qtbot.keyClick(field, Qt.Key.Key_Return)
    assert field.cursorPosition() == 0
    panel.show_object(2, Legend(), "right atrium, appendage and coronary sinus")
    assert field.text().startswith("right")
    assert field.cursorPosition() == 0


def test_a_button_grows_with_its_font(qtbot):
    made = button("Accept", "", least_px=34)
    qtbot.addWidget(made)
    assert made.minimumSizeHint().height() == 34
    font = made.font()
    font.setPointSize(40)
    made.setFont(font)
    assert made.minimumSizeHint().height() >= made.fontMetrics().height() > 34


def test_a_class_that_is_typed_counts_before_the_button_that_is_pressed_next(qtbot):
    """A button does not take the keyboard, so that leaving the field does not end the typing."""
    window, panel, accept, said = QWidget(), ObjectsPanel(), button("Accept", ""), []
    layout = QVBoxLayout(window)
    layout.addWidget(panel)
    layout.addWidget(accept)
    qtbot.addWidget(window)
    window.show()
    QApplication.setActiveWindow(window)
    panel.unfold(True)
    panel.show_object(1, Legend(), "")
    panel.named.connect(lambda name, color: said.append(name))
    accept.clicked.connect(lambda: said.append("accepted"))
    field = panel.name.lineEdit()
    qtbot.mouseClick(field, LEFT)
    qtbot.keyClicks(field, "nucleus")
    assert field.hasFocus()
    assert said == []
    qtbot.mouseClick(accept, LEFT)
    assert said == ["nucleus", "accepted"]
    assert not field.hasFocus()


def test_with_keys_and_mouse(make_napari_viewer, hands, monkeypatch, qtbot, engine, tmp_path, tube):
    monkeypatch.setattr(widget_module, "default_engine", engine)
    viewer = make_napari_viewer(show=True)
    viewer.window.resize(1280, 800)
    viewer.open(files.save_image(tmp_path / "scan.nii.gz", tube), plugin="napari-apprentice")
    _, widget = viewer.window.add_plugin_dock_widget("napari-apprentice", "Apprentice")
    shots = Path(os.environ.get("APPRENTICE_SHOTS", tmp_path))
    try:
        window, said = hands(viewer, widget), []
        widget.bridge.said.connect(said.append)
        window.wait()
        window.press(widget.start)
        plane = window.plane
        window.click(plane, 20, 20 + plane)
        window.key(Qt.Key(ord(KEYS["accept"])))
        window.key(Qt.Key(ord(KEYS["propagate"])))
        slices = engine.session.slices(1)
        assert widget.strip.slices == slices
        assert widget.strip.index == plane
        for index in (1, 6):
            qtbot.mouseClick(widget.strip, LEFT, Qt.KeyboardModifier.NoModifier, QPoint(widget.strip.middle_of(index), 8))
            window.wait()
            assert window.plane == widget.strip.index == index
        window.key(Qt.Key(ord(KEYS["approve"])))
        assert widget.strip.slices[6] == ACCEPTED
        assert Plane(0, 6) in engine.session._state.origin(1).own
        before = engine.session.labels[6].copy()

        qtbot.mouseMove(window.canvas.native, window.pixel(6, 20, 26))
        QApplication.processEvents()
        window.key(Qt.Key.Key_O, SHIFT)
        assert engine.session.label == 1
        widget.objects.unfold(True)
        widget.objects.name.setCurrentText("vessel")
        qtbot.keyClick(widget.objects.name.lineEdit(), Qt.Key.Key_Return)
        window.wait()
        assert engine.session.legend.classes == {"vessel": (1,)}
        for name in ("vein", "vessel"):  # what is typed takes the place of the name that is there
            qtbot.mouseClick(widget.objects.name.lineEdit(), LEFT)
            qtbot.keyClicks(widget.objects.name.lineEdit(), name)
            qtbot.keyClick(widget.objects.name.lineEdit(), Qt.Key.Key_Return)
            window.wait()
            assert engine.session.legend.classes[name] == (1,)
        assert set(engine.session.legend.classes) == {"vein", "vessel"}
        assert widget.objects.counts.text() == "1 × vessel"
        QApplication.processEvents()
        viewer.window.screenshot(str(shots / "objects.png"), canvas_only=False)
        window.key(Qt.Key(ord(KEYS["propagate"])))
        np.testing.assert_array_equal(engine.session.labels[6], before)
        window.key(Qt.Key(ord(KEYS["accept"])))
        assert widget.objects.name.currentText() == engine.session.kind == "vessel"
        assert "the next one is 'vessel', too" in " ".join(said)
        assert widget.objects.counts.text() == "1 × vessel"
        window.press(widget.undo)
        widget.objects.keep.setChecked(False)
        window.key(Qt.Key(ord(KEYS["accept"])))
        assert widget.objects.name.currentText() == engine.session.kind == ""
        window.press(widget.undo)

        window.press(widget.save)
        assert read_legend(legend_path(tmp_path / "scan_labels.nii.gz")).names == {1: "vessel"}
        window.press(widget.objects.delete)
        assert not window.labels.data.any()
        window.press(widget.undo)
        assert window.labels.data.any()
        np.testing.assert_array_equal(window.labels.data, engine.session.labels)
        viewer.dims.ndisplay = 3
        window.wait()
        assert not widget.strip.isVisible()
        viewer.dims.ndisplay = 2

        window.press(widget.start)  # close, and begin another one with what was saved
        viewer.open(tmp_path / "scan_labels.nii.gz", plugin="napari-apprentice")
        widget.more.labels.setCurrentText("scan_labels")
        window.press(widget.start)
        assert engine.session is engine.sessions[1]
        assert engine.session.finished == (1,)
        assert engine.session.legend.classes == {"vessel": (1,)}
    finally:
        widget.leave()
        assert widget.bridge.worker.join(60)


def test_objects_of_a_class_are_drawn_in_its_colour_and_stay_what_they_are(opened):
    viewer, bridge = opened
    layer = next(each for each in viewer.layers if isinstance(each, Labels))
    usual = [layer.get_color(label) for label in range(30)]
    for column in (20, 40):
        bridge.click(Click((4, 20, column)))
        bridge.accept()
        bridge.wait()
    layer.contour, layer.show_selected_label = 2, True
    bridge.select(2)
    bridge.wait()
    bridge.name("cell", "#123456")
    bridge.wait()
    assert layer.show_selected_label
    assert layer.colormap.use_selection
    layer.show_selected_label = False
    np.testing.assert_allclose(layer.get_color(2), np.array([0x12, 0x34, 0x56, 255]) / 255, atol=1e-6)
    np.testing.assert_allclose([layer.get_color(label) for label in (1, 3, 29)], [usual[label] for label in (1, 3, 29)])
    assert layer.get_color(0) is None or not np.any(layer.get_color(0))
    assert (layer.contour, layer.selected_label, layer.mode) == (2, 2, "pan_zoom")

    seen = layer.colormap
    bridge.click(Click((5, 20, 10)))
    bridge.wait()
    assert layer.colormap is seen, "the colours are made anew only when they change"
    bridge.select(500)  # an id that the cycle was too short for
    bridge.wait()
    assert not np.allclose(layer.get_color(500), layer.get_color(2))
    np.testing.assert_allclose(layer.get_color(2), np.array([0x12, 0x34, 0x56, 255]) / 255, atol=1e-6)
    bridge.select(70_000)  # and one that no cycle is long enough for
    bridge.wait()
    assert layer.get_color(70_000) is not None
    bridge.select(2)
    bridge.wait()
    bridge.name("")
    bridge.wait()
    np.testing.assert_allclose([layer.get_color(label) for label in range(1, 30)], usual[1:])
