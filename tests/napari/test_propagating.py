"""Carrying an object through a volume from the window: by the bridge alone, and with real keys and buttons."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Labels
from qtpy.QtCore import Qt

from napari_apprentice import files
from napari_apprentice._napari import bridge as bridge_module
from napari_apprentice._napari import widget as widget_module
from napari_apprentice._napari.bridge import Bridge
from napari_apprentice._napari.contributions import image_layer
from napari_apprentice._napari.engine import Wish
from napari_apprentice._napari.keys import KEYS
from napari_apprentice.types import Click, Plane

CONTROL = Qt.KeyboardModifier.ControlModifier


@pytest.fixture
def open_bridge(qtbot, engine):
    made = []

    def open_it(image, with_engine=engine):
        viewer = ViewerModel()
        data, arguments, _ = image_layer(image)
        layer = viewer.add_image(data, **arguments)
        bridge = Bridge(viewer, with_engine)
        made.append(bridge)
        bridge.words = []
        bridge.said.connect(bridge.words.append)
        bridge.wait = lambda: qtbot.waitUntil(lambda: bridge.worker.waiting == 0, timeout=30_000)
        bridge.start(layer, Wish())
        bridge.wait()
        return viewer, bridge

    yield open_it
    for bridge in made:
        bridge.close()
        assert bridge.worker.join(60)


def labels_of(viewer) -> np.ndarray:
    return next(layer for layer in viewer.layers if isinstance(layer, Labels)).data


def test_propagating_fills_slices_tells_and_is_one_undo(open_bridge, engine, tube):
    viewer, bridge = open_bridge(tube)
    progress = []
    bridge.progressed.connect(lambda done, total: progress.append((done, total)))
    bridge.click(Click((4, 20, 24)))
    bridge.accept()
    bridge.propagate()
    bridge.wait()
    assert [labels_of(viewer)[index].any() for index in range(8)] == [True] * 8
    np.testing.assert_array_equal(labels_of(viewer), engine.session.labels)
    assert progress[-1] == (7, 7)
    assert "7 slices were filled" in bridge.words[-1]
    assert len(bridge.state.doubts) == 7
    bridge.undo()
    bridge.wait()
    assert [labels_of(viewer)[index].any() for index in range(8)] == [index == 4 for index in range(8)]
    assert bridge.state.doubts == ()


def test_the_axis_is_the_one_that_is_stepped_through(open_bridge, engine, tube):
    viewer, bridge = open_bridge(tube)
    viewer.dims.order = (2, 0, 1)
    bridge.click(Click((4, 20, 24), True, 2))
    bridge.propagate()
    bridge.wait()
    assert {doubt.plane.axis for doubt in bridge.state.doubts} == {2}


def test_the_most_doubtful_slice_is_shown_and_its_object_opened(open_bridge, engine, tube):
    viewer, bridge = open_bridge(tube)
    bridge.show_doubtful()
    assert "propagate an object first" in bridge.words[-1]
    bridge.click(Click((4, 20, 24)))
    bridge.accept()
    bridge.propagate()
    bridge.wait()
    viewer.dims.order = (1, 0, 2)
    ranked = [doubt.plane for doubt in engine.session.advised(1, 0)]
    assert {doubt.plane for doubt in bridge.state.doubts} == {*ranked}
    for plane in (*ranked, ranked[0]):
        bridge.show_doubtful()
        bridge.wait()
        assert bridge._desk.plane == plane
        assert viewer.dims.order[0] == plane.axis
    assert bridge.state.label == 1
    assert "expected IoU" in bridge.words[-1]
    bridge.click(Click((ranked[0].index, 20, 20 + ranked[0].index)))
    bridge.wait()
    assert ranked[0] not in [doubt.plane for doubt in bridge.state.doubts]


def test_from_a_slice_that_the_user_went_to_it_leads_to_the_first(open_bridge, engine, tube):
    _, bridge = open_bridge(tube)
    bridge.click(Click((4, 20, 24)))
    bridge.accept()
    bridge.propagate()
    bridge.wait()
    assert bridge.words[-1].endswith("; U shows where a correction helps most")
    ranked = [doubt.plane for doubt in engine.session.advised(1, 0)]

    def led():
        bridge.show_doubtful()
        bridge.wait()
        return bridge._desk.plane

    bridge.show_slice(ranked[3].index)  # one of the list, but nobody was led there
    assert [led(), led()] == ranked[:2]
    bridge.show_slice(ranked[4].index)
    assert [led(), led()] == ranked[:2]
    bridge.propagate()  # a new list
    bridge.wait()
    assert led() == engine.session.advised(1, 0)[0].plane

    shown = bridge._desk.plane
    bridge.approve()  # the slice is on the list no longer
    bridge.wait()
    left = [doubt.plane for doubt in engine.session.advised(1, 0)]
    assert shown not in left
    assert led() == left[0]


def test_nothing_is_said_of_a_way_on_where_there_is_none(open_bridge, tube):
    _, bridge = open_bridge(tube)
    bridge.click(Click((4, 20, 24)))
    bridge.propagate()
    bridge.wait()
    while bridge.state.doubts:
        bridge._desk.show_plane(bridge.state.doubts[0].plane)
        bridge.approve()
        bridge.wait()
    bridge.propagate()
    bridge.wait()
    assert bridge.words[-1] == "no slice was filled"


def test_clicks_that_were_not_accepted_are_not_lost_by_looking(open_bridge, tube):
    _, bridge = open_bridge(tube)
    bridge.click(Click((4, 20, 24)))
    bridge.accept()
    bridge.propagate()
    bridge.click(Click((4, 35, 5)))
    bridge.wait()
    bridge.show_doubtful()
    bridge.wait()
    assert bridge.state.label == 2
    assert len(bridge.state.clicks) == 1
    assert "accept object 2" in bridge.words[-1]


def test_called_off_everything_is_as_it_was(open_bridge, slow_engine, tube):
    gate = threading.Event()
    gate.set()
    slow = slow_engine(gate=gate)
    viewer, bridge = open_bridge(tube, slow)
    bridge.click(Click((4, 20, 24)))
    bridge.wait()
    before, going = labels_of(viewer).copy(), []
    bridge.propagating_changed.connect(going.append)
    gate.clear()
    bridge.propagate()
    bridge.propagate()  # the same key calls it off
    gate.set()
    bridge.wait()
    assert going == [True, False]
    assert bridge.words[-1] == "cancelled; everything is as it was"
    np.testing.assert_array_equal(labels_of(viewer), before)
    np.testing.assert_array_equal(slow.session.labels, before)
    bridge.propagate()
    bridge.wait()
    assert labels_of(viewer).any(axis=(1, 2)).all()


def test_closing_calls_it_off(open_bridge, slow_engine, tube):
    gate = threading.Event()
    gate.set()
    slow = slow_engine(gate=gate)
    _, bridge = open_bridge(tube, slow)
    bridge.click(Click((4, 20, 24)))
    bridge.wait()
    gate.clear()
    bridge.propagate()
    bridge.close()
    gate.set()
    assert bridge.worker.join(60)
    assert slow.session.labels.any(axis=(1, 2)).sum() == 1


def test_pictures_and_renderings_have_no_slices(open_bridge, engine, photograph, tube, told):
    _, bridge = open_bridge(photograph)
    bridge.click(Click((20, 20)))
    bridge.propagate()
    viewer, bridge = open_bridge(tube)
    viewer.dims.ndisplay = 3
    bridge.propagate()
    assert told() == [bridge_module.NO_SLICES] * 2


def test_with_keys_and_buttons(make_napari_viewer, hands, monkeypatch, engine, tmp_path, tube):
    monkeypatch.setattr(widget_module, "default_engine", engine)
    viewer = make_napari_viewer(show=True)
    viewer.window.resize(1280, 800)
    viewer.open(files.save_image(tmp_path / "scan.nii.gz", tube), plugin="napari-apprentice")
    _, widget = viewer.window.add_plugin_dock_widget("napari-apprentice", "Apprentice")
    try:
        window = hands(viewer, widget)
        window.wait()
        window.press(widget.start)
        assert not widget.doubtful.isEnabled()
        plane = window.plane
        window.click(plane, 20, 20 + plane)
        window.key(Qt.Key(ord(KEYS["accept"])))
        window.key(Qt.Key(ord(KEYS["propagate"])))
        assert engine.session.labels.any(axis=(1, 2)).all()
        assert "7 slices were filled" in widget.status.words
        assert widget.propagate.text().startswith("Propagate")
        viewer.window.screenshot(str(tmp_path / "propagated.png"), canvas_only=False)
        worst = engine.session.advised(1, 0)[0].plane
        window.key(Qt.Key(ord(KEYS["doubtful"])))
        assert Plane(0, window.plane) == worst
        assert engine.session.label == 1
        window.activate(window.labels)
        window.key(Qt.Key.Key_Z, CONTROL)  # the selection
        window.key(Qt.Key.Key_Z, CONTROL)
        assert engine.session.labels.any(axis=(1, 2)).sum() == 1
        window.press(widget.propagate)
        assert engine.session.labels.any(axis=(1, 2)).all()
        window.press(widget.doubtful)
        assert engine.session.label == 1
    finally:
        widget.leave()
        assert widget.bridge.worker.join(60)
