"""The widget as napari opens and closes it, and the whole path through it."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from napari.layers import Labels, Points
from qtpy.QtCore import QPoint, Qt

from napari_apprentice import files
from napari_apprentice._napari import widget as widget_module
from napari_apprentice._napari.keys import KEYS
from napari_apprentice._napari.launch import open_window
from napari_apprentice.types import Click

CONTROL = Qt.KeyboardModifier.ControlModifier
SHIFT = Qt.KeyboardModifier.ShiftModifier


@pytest.fixture
def open_docked(make_napari_viewer, hands, monkeypatch, engine):
    """Opens a window with a file in it and the widget from the plugin menu."""
    monkeypatch.setattr(widget_module, "default_engine", engine)
    windows = []

    def open_it(path):
        viewer = make_napari_viewer(show=True)
        viewer.window.resize(1280, 800)
        viewer.open(path, plugin="napari-apprentice")
        _, widget = viewer.window.add_plugin_dock_widget("napari-apprentice", "Apprentice")
        windows.append(hands(viewer, widget))
        windows[-1].wait()
        return windows[-1]

    yield open_it
    for window in windows:
        window.widget.leave()
        assert window.widget.bridge.worker.join(10)


@pytest.fixture
def scan(tmp_path, volume):
    return files.save_image(tmp_path / "scan.nii.gz", volume)


def test_the_whole_path(open_docked, engine, tmp_path, scan):
    window = open_docked(scan)
    window.press(window.widget.start)
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


def test_closing_the_dock_while_a_prediction_runs(open_docked, scan, engine, slow_engine):
    gate = threading.Event()
    engine.segmenter = slow_engine(gate=gate).segmenter
    window = open_docked(scan)
    window.press(window.widget.start)
    worker = window.widget.bridge.worker
    window.click(window.plane, 20, 20, wait=False)
    began = time.perf_counter()
    window.viewer.window.remove_dock_widget(window.widget)
    assert time.perf_counter() - began < 1
    assert not [layer for layer in window.viewer.layers if isinstance(layer, Points)]
    gate.set()
    assert worker.join(10)
    assert len(engine.session.clicks) == 1
    window.viewer.layers.clear()  # nobody listens any more


def test_closing_the_window_while_a_prediction_runs(open_docked, scan, engine, slow_engine):
    gate = threading.Event()
    engine.segmenter = slow_engine(gate=gate).segmenter
    window = open_docked(scan)
    window.press(window.widget.start)
    window.click(window.plane, 20, 20, wait=False)
    began = time.perf_counter()
    window.viewer.close()
    assert time.perf_counter() - began < 3
    gate.set()
    window.widget.leave()
    assert window.widget.bridge.worker.join(10)
    assert len(engine.session.clicks) == 1


def test_the_names_of_the_policies_are_those_of_the_engine():
    from napari_apprentice._napari.engine import POLICIES
    from napari_apprentice.assembly import DEFAULT_POLICY
    from napari_apprentice.assembly import POLICIES as REAL

    assert tuple(sorted(POLICIES)) == tuple(sorted(REAL))
    assert next(iter(POLICIES)) == DEFAULT_POLICY


@pytest.mark.parametrize(("theme", "upright"), [("dark", True), ("light", False)])
def test_launched_window_fits_a_small_screen_and_can_be_photographed(hands, volume, engine, theme, upright, tmp_path):
    viewer, widget = open_window(volume, upright=upright, engine=engine)
    try:
        viewer.theme = theme
        viewer.window.resize(1280, 800)
        window = hands(viewer, widget)
        widget.more.unfold(True)
        window.press(widget.start)
        window.click(window.plane, 20, 20)
        assert viewer.window.geometry()[2:] <= (1280, 800)
        assert widget.more.forget.mapTo(widget, QPoint(0, 0)).y() < 700
        picture = viewer.window.screenshot(str(tmp_path / f"{theme}.png"), canvas_only=False)
        assert picture[..., :3].std() > 10  # something was drawn
        assert window.pixel(3, 0, 20).y() != window.pixel(3, 39, 20).y()
        assert (window.pixel(3, 0, 20).y() > window.pixel(3, 39, 20).y()) == upright
    finally:
        viewer.close()
        widget.leave()
        assert widget.bridge.worker.join(10)
