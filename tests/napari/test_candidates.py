"""Stepping through the masks that a model proposes, and changing the model under the work: without a window, and in a real one."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Labels
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QFileDialog

import napari
from napari_apprentice._napari.bridge import MODEL_CHANGED, Bridge
from napari_apprentice._napari.contributions import image_layer
from napari_apprentice._napari.engine import Wish, shipped_networks
from napari_apprentice._napari.keys import KEYS, NEXT_MASK, SWITCH_SIGN
from napari_apprentice._napari.launch import open_window
from napari_apprentice._napari.model_panel import ModelPanel
from napari_apprentice.fakes import DiskSegmenter, FakePolicy, FakeStore
from napari_apprentice.journal import Journal
from napari_apprentice.session import Session
from napari_apprentice.types import Click, WeightsError

FIRST = Click((2, 20, 20))
WIDE = Path("wide.safetensors")


class Networks:
    """Opens sessions that propose three masks, of disks with the radius 4, or 8 with the weights `WIDE`. Other weights are refused."""

    def __init__(self) -> None:
        self.sessions: list[Session] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, image, wish, folder):
        assert self.gate.wait(30), "nobody opened the gate"
        if wish.weights not in (None, WIDE):
            raise WeightsError(f"{wish.weights} cannot be read; expected weights")
        segmenter = DiskSegmenter(8.0 if wish.weights else 4.0, masks=3)
        journal = Journal.create(folder, image)
        given = {"labels": wish.labels, "origins": wish.origins, "journal": journal, "store": FakeStore()}
        self.sessions.append(Session(image, segmenter, FakePolicy(0, 0), **given))
        return self.sessions[-1]


class Desk:
    """A viewer without a window, and a bridge with an open session."""

    def __init__(self, qtbot, image, engine) -> None:
        self.qtbot, self.engine, self.viewer = qtbot, engine, ViewerModel()
        data, arguments, _ = image_layer(image)
        self.bridge, self.said, self.changed = Bridge(self.viewer, engine), [], []
        self.bridge.said.connect(self.said.append)
        self.bridge.model_changed.connect(self.changed.append)
        self.bridge.start(self.viewer.add_image(data, **arguments), Wish())
        self.wait()

    def wait(self) -> None:
        self.qtbot.waitUntil(lambda: self.bridge.worker.waiting == 0, timeout=30_000)

    @property
    def labels(self) -> np.ndarray:
        return self.bridge._desk.mask.layer.data

    @property
    def session(self) -> Session:
        return self.engine.sessions[-1]


@pytest.fixture
def desk(qtbot, volume):
    made = Desk(qtbot, volume, Networks())
    yield made
    made.bridge.close()
    assert made.bridge.worker.join(60)


def disk(click: Click, radius: float) -> np.ndarray:
    z, rows, cols = np.indices((8, 40, 50))
    return (z == click.voxel[0]) & ((rows - click.voxel[1]) ** 2 + (cols - click.voxel[2]) ** 2 <= radius**2)


# --- stepping through masks -------------------------------------------------------------------------------------------------------------


def test_each_step_shows_the_next_mask_and_says_what_it_is(desk):
    desk.bridge.click(FIRST)
    desk.wait()
    assert desk.bridge.state.masks == 3
    assert "N shows another mask" in desk.said[-1]
    for rank, score in [(1, "0.50"), (2, "0.33"), (0, "1.00")]:
        desk.bridge.next_mask()
        desk.wait()
        assert desk.said[-1] == f"mask {rank + 1} of 3, expected IoU {score}"
        np.testing.assert_array_equal(desk.labels == 1, disk(FIRST, 4 + 2 * rank))
    desk.bridge.undo()
    desk.wait()
    np.testing.assert_array_equal(desk.labels == 1, disk(FIRST, 8))


def test_steps_that_are_asked_for_at_once_are_taken_one_by_one(desk):
    desk.bridge.click(FIRST)
    desk.bridge.next_mask()
    desk.bridge.next_mask()
    desk.wait()
    assert desk.said[-1] == "mask 3 of 3, expected IoU 0.33"


def test_without_a_choice_there_is_something_to_say(qtbot, volume, make_engine, desk):
    desk.bridge.next_mask()
    desk.wait()
    assert desk.said[-1].startswith("click on an object first")
    one = Desk(qtbot, volume, make_engine())
    try:
        one.bridge.click(FIRST)
        one.wait()
        assert "another mask" not in one.said[-1]
        one.bridge.next_mask()
        one.wait()
        assert one.said[-1] == "the model proposes only this one mask"
        assert one.bridge.state.masks == 1
    finally:
        one.bridge.close()
        assert one.bridge.worker.join(60)


def test_an_answer_without_what_was_accepted_says_so(desk, monkeypatch):
    desk.bridge.click(FIRST)
    desk.wait()
    assert "nothing accepted looks like this" not in desk.said[-1]
    answered = DiskSegmenter.predict
    monkeypatch.setattr(DiskSegmenter, "predict", lambda *those: replace(answered(*those), familiar=False))
    desk.bridge.click(Click((5, 30, 40)))
    desk.wait()
    assert desk.said[-1].startswith("nothing accepted looks like this, so it is answered without examples; ")
    assert "N shows another mask" in desk.said[-1]


# --- another network --------------------------------------------------------------------------------------------------------------------


def test_another_model_keeps_labels_names_and_clicks_and_answers_anew(desk):
    other, second = Click((5, 30, 40)), Click((2, 20, 12))
    desk.bridge.click(other)
    desk.bridge.accept()
    desk.wait()
    desk.session.name(1, "nucleus")
    for click in (FIRST, second, Click((2, 28, 20), False)):
        desk.bridge.click(click)
    layers = list(desk.viewer.layers)
    desk.bridge.change_model(Wish(weights=WIDE))
    assert desk.bridge.opening
    desk.wait()
    assert desk.changed == [True]
    assert desk.said[-1] == MODEL_CHANGED
    assert len(desk.engine.sessions) == 2
    assert list(desk.viewer.layers) == layers
    assert desk.session.clicks == (FIRST, second, Click((2, 28, 20), False))
    assert desk.session.label == desk.bridge.state.label == 2
    assert desk.session.finished == (1,)
    assert desk.session.legend.names == {1: "nucleus"}
    np.testing.assert_array_equal(desk.labels == 1, disk(other, 4))
    np.testing.assert_array_equal(desk.labels == 2, (disk(FIRST, 8) | disk(second, 8)) & ~disk(Click((2, 28, 20)), 8))
    desk.bridge.click(Click((2, 10, 40)))
    desk.wait()
    assert len(desk.session.clicks) == 4
    np.testing.assert_array_equal(desk.labels, desk.session.labels)


def test_slices_that_nobody_looked_at_stay_doubtful_under_another_model(desk):
    desk.bridge.click(FIRST)
    desk.bridge.accept()
    desk.wait()
    desk.bridge.propagate()
    desk.wait()
    doubtful, slices = desk.session.doubtful(), desk.session.slices(1)
    assert doubtful
    desk.bridge.change_model(Wish(weights=WIDE))
    desk.wait()
    assert len(desk.engine.sessions) == 2
    assert desk.session.doubtful() == doubtful
    assert desk.session.slices(1) == slices
    desk.session.propagate(1)
    assert desk.session.slices(1)[2] == slices[2], "what the user clicked in is not carried over"


def test_clicks_that_were_made_anew_can_be_undone_with_all_that_is_known_of_them(desk):
    desk.bridge.click(FIRST)
    desk.wait()
    desk.bridge.change_model(Wish(weights=WIDE))
    desk.wait()
    desk.session.undo()
    assert not any(origin.own for origin in desk.session.origins.values())


def test_what_is_painted_while_a_model_is_awaited_is_in_the_session_that_is_closed_meanwhile(desk):
    desk.bridge.click(FIRST)
    desk.wait()
    layer, session = next(layer for layer in desk.viewer.layers if isinstance(layer, Labels)), desk.session
    desk.engine.gate.clear()
    desk.bridge.change_model(Wish(weights=WIDE))
    layer.data_setitem((np.array([3]), np.array([5]), np.array([5])), 1)
    desk.bridge.stop()
    desk.engine.gate.set()
    desk.wait()
    assert session.labels[3, 5, 5] == 1


def test_strokes_around_a_change_of_the_model_are_in_the_session_and_only_there(desk):
    layer = next(layer for layer in desk.viewer.layers if isinstance(layer, Labels))

    def dab(column, label) -> None:
        layer.data_setitem((np.array([3]), np.array([5]), np.array([column])), label)

    desk.bridge.click(FIRST)
    dab(5, 1)
    desk.engine.gate.clear()
    desk.bridge.change_model(Wish(weights=WIDE))
    dab(9, 1)
    desk.engine.gate.set()
    desk.wait()
    assert desk.session.labels[3, 5, 5] == desk.session.labels[3, 5, 9] == 1
    np.testing.assert_array_equal(desk.labels, desk.session.labels)
    for column in (5, 9):
        dab(column, 0)
    desk.bridge.click(Click((2, 10, 40)))
    desk.wait()
    assert not desk.session.labels[3].any()
    np.testing.assert_array_equal(desk.labels, desk.session.labels)


def test_what_was_painted_elsewhere_stays_under_another_model(desk):
    desk.bridge.click(FIRST)
    desk.wait()
    desk.session.paint((slice(3, 4), slice(0, 2), slice(0, 2)), np.full((1, 2, 2), 1))
    desk.bridge.change_model(Wish(weights=WIDE))
    desk.wait()
    expected = disk(FIRST, 8)
    expected[3, :2, :2] = True
    np.testing.assert_array_equal(desk.labels == 1, expected)


def test_a_model_that_does_not_come_leaves_the_session_as_it_is(desk, told):
    desk.bridge.click(FIRST)
    desk.bridge.change_model(Wish(weights=Path("torn.safetensors")))
    desk.bridge.click(Click((2, 30, 30)))  # while the other model is awaited, nothing is asked of the old one
    desk.wait()
    assert desk.changed == [False]
    assert told()[-1] == "torn.safetensors cannot be read; expected weights"
    assert len(desk.engine.sessions) == 1
    assert desk.bridge.state.clicks == (FIRST,)
    desk.bridge.click(Click((2, 30, 30)))
    desk.wait()
    np.testing.assert_array_equal(desk.labels == 1, disk(FIRST, 4) | disk(Click((2, 30, 30)), 4))


def test_what_a_click_means_can_be_switched_while_another_model_is_awaited(desk):
    desk.bridge.click(FIRST)
    desk.bridge.change_model(Wish(weights=WIDE))
    desk.bridge.switch_sign()
    assert desk.bridge.opening
    desk.wait()
    assert (desk.bridge.positive, desk.bridge._sitting.desk.clicks.positive) == (False, False)


def test_a_session_can_be_closed_while_its_model_changes(desk):
    desk.bridge.click(FIRST)
    desk.bridge.change_model(Wish(weights=WIDE))
    desk.bridge.stop()
    desk.wait()
    assert desk.bridge.state is None
    assert desk.changed == []
    for session in desk.engine.sessions:
        with pytest.raises(Exception, match="cannot be written"):
            session.add(FIRST)


def test_the_panel_lists_what_is_shipped_and_files_that_were_chosen(qtbot, monkeypatch, tmp_path):
    assert "unet" in shipped_networks()
    panel, chosen = ModelPanel({"other": Path("other.safetensors"), "unet": Path("unet.safetensors")}), []
    qtbot.addWidget(panel)
    panel.network_chosen.connect(lambda: chosen.append(panel.weights))
    assert (panel.network.currentText(), panel.weights) == ("unet", None)
    panel.network.activated.emit(0)
    panel.keep_network(True)
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: (str(tmp_path / "mine.safetensors"), ""))
    panel.network.activated.emit(2)
    assert chosen == [Path("other.safetensors"), tmp_path / "mine.safetensors"]
    assert panel.network.currentText() == "mine.safetensors"
    panel.keep_network(False)
    assert (panel.network.currentText(), panel.weights) == ("other", Path("other.safetensors"))
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: ("", ""))
    panel.network.activated.emit(3)
    assert len(chosen) == 2
    assert panel.network.currentText() == "other"
    assert [panel.network.itemText(i) for i in range(panel.network.count())] == ["other", "unet", "mine.safetensors", "another file…"]


def test_the_panel_shows_the_network_of_the_open_session_and_then_what_was_chosen_again(qtbot):
    unet, other, mine = Path("unet.safetensors"), Path("other.safetensors"), Path("mine.safetensors")
    panel = ModelPanel({"other": other, "unet": unet})
    qtbot.addWidget(panel)

    def shown():
        return panel.network.currentText(), panel.weights

    for weights, text in ((unet, "unet"), (None, "unet"), (mine, "mine.safetensors"), (None, "unet")):
        panel.show_network(weights)
        assert panel.network.currentText() == text
    panel.show_network(unet)
    panel.network.setCurrentIndex(0)
    panel.network.activated.emit(0)  # in the session
    panel.show_network(unet)  # until the other one is there
    assert shown() == ("other", other)
    panel.keep_network(True)
    panel.show_network(other)
    panel.show_network(None)
    assert shown() == ("other", other)
    panel.show_network(mine)
    assert shown() == (mine.name, mine)
    panel.show_network(None)
    assert shown() == ("other", other)


# --- in a real window -------------------------------------------------------------------------------------------------------------------


def test_a_key_steps_and_the_list_changes_the_network_in_a_real_window(make_napari_viewer, monkeypatch, hands, volume, tmp_path):
    monkeypatch.setattr(napari, "Viewer", lambda **options: make_napari_viewer(show=True, **options))
    engine = Networks()
    viewer, widget = open_window(volume, engine=engine)
    try:
        viewer.window.resize(1280, 800)
        window = hands(viewer, widget)
        window.press(widget.start)
        plane, key = window.plane, Qt.Key(ord(KEYS[NEXT_MASK]))
        assert not widget.next_mask.isVisible()
        window.click(plane, 20, 20)
        assert widget.next_mask.isVisible()
        first = Click((plane, 20, 20))
        np.testing.assert_array_equal(window.labels.data == 1, disk(first, 4))
        for layer, rank in [(window.points, 1), (window.labels, 2), (viewer.layers[0], 0)]:
            window.activate(layer)
            window.key(key)
            assert widget.status.words.startswith(f"mask {rank + 1} of 3, expected IoU")
            np.testing.assert_array_equal(window.labels.data == 1, disk(first, 4 + 2 * rank))
        window.press(widget.next_mask)
        np.testing.assert_array_equal(window.labels.data == 1, disk(first, 6))
        viewer.window.screenshot(str(tmp_path / "masks.png"), canvas_only=False)

        widget.model.unfold(True)
        monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: (str(WIDE), ""))
        engine.gate.clear()
        widget.model.network.activated.emit(widget.model.network.count() - 1)
        window.activate(window.points)
        window.qtbot.keyClick(window.keyboard, Qt.Key(ord(KEYS[SWITCH_SIGN])))  # while the model is awaited
        assert widget.bridge.opening
        engine.gate.set()
        window.wait()
        assert widget.model.network.currentText() == WIDE.name
        assert widget.status.words == MODEL_CHANGED
        assert widget.clicks.text() == "1 click"
        np.testing.assert_array_equal(window.labels.data == 1, disk(first, 8))
        assert widget.sign._negative.isChecked()
        window.click(plane, 20, 35)
        assert engine.sessions[-1].clicks[-1] == Click((plane, 20, 35), False)
        window.key(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
        window.key(Qt.Key(ord(KEYS[SWITCH_SIGN])))
        window.key(key)
        np.testing.assert_array_equal(window.labels.data == 1, disk(first, 12))
        monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: ("torn.safetensors", ""))
        widget.model.network.activated.emit(widget.model.network.count() - 1)
        window.wait()
        assert widget.model.network.currentText() == WIDE.name
        np.testing.assert_array_equal(window.labels.data == 1, disk(first, 12))
    finally:
        widget.leave()
        assert widget.bridge.worker.join(60)
