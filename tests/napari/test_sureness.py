"""How sure the model is: shown where the answer is, for as long as there is one and somebody wants to see it."""

from __future__ import annotations

import numpy as np
import pytest
from napari.components import ViewerModel

import napari
from napari_apprentice._napari.bridge import Bridge
from napari_apprentice._napari.contributions import image_layer
from napari_apprentice._napari.engine import Wish
from napari_apprentice._napari.launch import open_window
from napari_apprentice._napari.outline import OUTLINE_KEY
from napari_apprentice._napari.placement import show_plane
from napari_apprentice.calibration import probability
from napari_apprentice.types import Click, Plane


class Desk:
    """A viewer and a bridge with an open session, whose model paints disks."""

    def __init__(self, qtbot, image, engine) -> None:
        self.qtbot, self.engine, self.viewer = qtbot, engine, ViewerModel()
        data, arguments, _ = image_layer(image)
        self.image_layer = self.viewer.add_image(data, **arguments)
        self.bridge = Bridge(self.viewer, engine)
        self.start()

    def start(self) -> None:
        self.bridge.start(self.image_layer, Wish())
        self.wait()

    def wait(self) -> None:
        self.qtbot.waitUntil(lambda: self.bridge.worker.waiting == 0, timeout=30_000)

    def click(self, *voxel, axis=0) -> None:
        self.bridge.click(Click(voxel, axis=axis))
        self.wait()

    @property
    def shown(self):
        """The layer, or None where none is to be seen."""
        found = [layer for layer in self.viewer.layers if OUTLINE_KEY in layer.metadata]
        assert len(found) <= 1
        return found[0] if found and found[0].visible else None

    def as_in_session(self, plane, clicks) -> None:
        """What is shown is what the session says of ``plane``, at its place."""
        said, shape = self.engine.session.predictions[plane], self.image_layer.data.shape
        expected = np.zeros(said.shape, np.float32)
        expected[said.box.slices] = probability(said, clicks)
        found = np.zeros(shape[:2] if self.image_layer.rgb else shape, np.float32)
        corner = np.asarray(self.image_layer.world_to_data(self.shown.data_to_world(np.zeros(self.shown.ndim))))
        np.testing.assert_allclose(corner, np.rint(corner), atol=1e-6)
        first = np.rint(corner).astype(int)
        found[tuple(slice(i, i + n) for i, n in zip(first, self.shown.data.shape, strict=True))] = self.shown.data
        in_plane = found if found.ndim == 2 else np.take(found, plane.index, plane.axis)
        np.testing.assert_array_equal(in_plane, expected)
        assert found.sum() == pytest.approx(expected.sum()), "and nothing lies elsewhere"


@pytest.fixture
def desks(qtbot, make_engine):
    made = []

    def make(image):
        made.append(Desk(qtbot, image, make_engine()))
        return made[-1]

    yield make
    for each in made:
        each.bridge.close()
        assert each.bridge.worker.join(60)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_it_lies_where_the_answer_is_in_every_plane_of_a_volume(desks, volume, axis):
    desk = desks(volume)
    desk.bridge.show_sureness(True)
    assert desk.shown is None, "nothing was clicked yet"
    desk.click(4, 20, 24, axis=axis)
    desk.as_in_session(Plane(axis, (4, 20, 24)[axis]), 1)
    desk.click(5, 22, 30, axis=axis)
    show_plane(desk.viewer.dims, desk.image_layer, Plane(axis, (5, 22, 30)[axis]))
    desk.bridge.look()
    desk.wait()
    desk.as_in_session(Plane(axis, (5, 22, 30)[axis]), 1)
    show_plane(desk.viewer.dims, desk.image_layer, Plane(axis, 1))
    desk.bridge.look()
    desk.wait()
    desk.as_in_session(Plane(axis, (5, 22, 30)[axis]), 1)


def test_it_lies_where_the_answer_is_in_a_photograph(desks, photograph):
    desk = desks(photograph)
    desk.bridge.show_sureness(True)
    desk.click(30, 40)
    desk.as_in_session(Plane(0, 0), 1)
    desk.click(35, 44)
    desk.as_in_session(Plane(0, 0), 2)


def test_it_comes_when_it_is_wanted_and_goes_when_not(desks, volume):
    desk = desks(volume)
    desk.click(4, 20, 24)
    assert desk.shown is None
    desk.bridge.show_sureness(True)
    desk.wait()
    desk.as_in_session(Plane(0, 4), 1)
    desk.bridge.show_sureness(False)
    assert len(desk.viewer.layers) == 3, "image, labels and clicks"


def test_it_is_about_the_open_object_and_follows_undo(desks, volume):
    desk = desks(volume)
    desk.bridge.show_sureness(True)
    desk.click(4, 20, 24)
    desk.bridge.accept()
    desk.wait()
    assert desk.shown is None, "the next object has no answer yet"
    desk.bridge.undo()
    desk.wait()
    desk.as_in_session(Plane(0, 4), 1)
    desk.bridge.undo()
    desk.wait()
    assert desk.shown is None


def test_an_answer_without_a_pixel_is_not_shown(desks, volume):
    desk = desks(volume)
    desk.bridge.show_sureness(True)
    desk.bridge.click(Click((4, 20, 24), positive=False))
    desk.wait()
    assert desk.engine.session.predictions[Plane(0, 4)].box.shape == (0, 0)
    assert desk.shown is None
    desk.click(4, 20, 24)
    desk.as_in_session(Plane(0, 4), 2)


def test_it_ends_with_the_session_and_comes_again_with_the_next(desks, volume):
    desk = desks(volume)
    desk.bridge.show_sureness(True)
    desk.click(4, 20, 24)
    desk.bridge.stop()
    assert len(desk.viewer.layers) == 2, "image and labels"
    desk.start()
    desk.click(2, 20, 24)
    desk.as_in_session(Plane(0, 2), 1)


def test_taken_out_by_hand_it_comes_with_the_next_answer(desks, volume):
    desk = desks(volume)
    desk.bridge.show_sureness(True)
    desk.click(4, 20, 24)
    desk.viewer.layers.remove(desk.shown)
    assert desk.bridge.state is not None, "the session goes on"
    desk.click(4, 22, 28)
    desk.as_in_session(Plane(0, 4), 2)


def test_a_layer_of_the_session_that_goes_takes_it_along(desks, volume, qtbot):
    desk = desks(volume)
    desk.bridge.show_sureness(True)
    desk.click(4, 20, 24)
    desk.viewer.layers.remove(desk.image_layer)
    qtbot.waitUntil(lambda: desk.shown is None)
    assert desk.bridge.state is None


def test_the_tick_in_a_real_window(make_napari_viewer, monkeypatch, hands, volume, make_engine):
    monkeypatch.setattr(napari, "Viewer", lambda **options: make_napari_viewer(show=True, **options))
    viewer, widget = open_window(volume, engine=make_engine())
    try:
        viewer.window.resize(1280, 800)
        window = hands(viewer, widget)
        window.press(widget.start)
        widget.more.unfold(True)
        window.press(widget.more.sureness)
        points = window.points
        window.click(window.plane, 20, 24)
        (shown,) = [layer for layer in viewer.layers if OUTLINE_KEY in layer.metadata]
        assert viewer.layers.selection.active is points
        assert [widget.image.itemText(i) for i in range(widget.image.count())] == ["scan"]
        window.click(window.plane, 26, 30)  # the layer lies over the image, but takes no click
        assert len(widget.bridge.state.clicks) == 2
        (before,) = shown.data_to_world((0, 0, 0))[:1]
        viewer.dims.set_current_step(0, viewer.dims.current_step[0] + 1)
        window.click(window.plane, 20, 24)
        viewer.dims.set_current_step(0, viewer.dims.current_step[0] - 1)
        window.wait()
        assert shown.data_to_world((0, 0, 0))[0] == before
        window.press(widget.more.sureness)
        assert shown not in viewer.layers
    finally:
        widget.leave()


def test_it_changes_nothing_of_layers_that_the_user_has_linked_with_it(desks, volume):
    desk = desks(volume)
    desk.bridge.show_sureness(True)
    desk.click(4, 20, 24)
    desk.viewer.layers.link_layers(list(desk.viewer.layers))
    places = [(layer, tuple(layer.translate)) for layer in desk.viewer.layers if layer is not desk.shown]
    desk.click(4, 26, 30)
    desk.as_in_session(Plane(0, 4), 2)
    desk.viewer.layers.link_layers(list(desk.viewer.layers))
    desk.bridge.accept()
    desk.wait()
    assert desk.shown is None
    assert [(layer, tuple(layer.translate)) for layer, _ in places] == places
    assert all(layer.visible for layer, _ in places)


def test_hidden_by_the_user_it_stays_hidden(desks, volume):
    desk = desks(volume)
    desk.bridge.show_sureness(True)
    desk.click(4, 20, 24)
    desk.shown.visible = False
    for act in (lambda: desk.click(4, 26, 30), desk.bridge.accept, lambda: desk.click(5, 26, 30)):
        act()
        desk.wait()
        assert desk.shown is None
    desk.bridge.show_sureness(False)
    desk.bridge.show_sureness(True)
    desk.wait()
    desk.as_in_session(Plane(0, 5), 1)


def test_nothing_is_said_of_it_when_it_comes(desks, volume):
    desk = desks(volume)
    desk.click(4, 20, 24)
    desk.bridge.accept()
    desk.wait()
    said = []
    desk.bridge.said.connect(said.append)
    desk.bridge.show_sureness(True)
    desk.click(4, 20, 24)
    assert "belongs to object 1" in said[-1]


def test_a_view_that_is_turned_shows_the_slice_that_was_clicked_there(make_napari_viewer, monkeypatch, hands, volume, make_engine):
    monkeypatch.setattr(napari, "Viewer", lambda **options: make_napari_viewer(show=True, **options))
    viewer, widget = open_window(volume, engine=make_engine())
    try:
        window = hands(viewer, widget)
        window.press(widget.start)
        widget.more.sureness.setChecked(True)
        window.click(window.plane, 20, 24)
        shown = next(layer for layer in viewer.layers if OUTLINE_KEY in layer.metadata)
        first = shown.data.shape
        show_plane(viewer.dims, viewer.layers[0], Plane(2, 24))
        window.click(5, 20, 24)
        assert shown.data.shape[2] == 1
        viewer.dims.order = (0, 1, 2)
        window.wait()
        assert shown.data.shape == first
    finally:
        widget.leave()
