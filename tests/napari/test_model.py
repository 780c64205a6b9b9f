"""The model's panel and the look at the untaught model: with a viewer that has no window, and once in a real one."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Labels
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QFileDialog

import napari
from napari_apprentice._napari.answers import State
from napari_apprentice._napari.bridge import Bridge
from napari_apprentice._napari.contributions import image_layer
from napari_apprentice._napari.engine import Wish
from napari_apprentice._napari.keys import KEYS, PEEK
from napari_apprentice._napari.launch import open_window
from napari_apprentice._napari.model_panel import ModelPanel, saved
from napari_apprentice._napari.outline import OUTLINE_KEY
from napari_apprentice.fakes import DiskWeights, FakePolicy, FakeStore
from napari_apprentice.types import Click
from napari_apprentice.versions import Catalogue, Effort, Refusal, Version


class Desk:
    """A viewer and a bridge with an open session, whose model paints disks of radius 5, and of one more after every object."""

    def __init__(self, qtbot, image, engine, wish=None) -> None:
        self.qtbot, self.engine, self.viewer = qtbot, engine, ViewerModel()
        data, arguments, _ = image_layer(image)
        self.image_layer = self.viewer.add_image(data, **arguments)
        self.bridge, self.said, self.states = Bridge(self.viewer, engine), [], []
        self.bridge.said.connect(self.said.append)
        self.bridge.state_changed.connect(self.states.append)
        self.bridge.start(self.image_layer, wish or Wish())
        self.wait()

    def wait(self) -> None:
        self.qtbot.waitUntil(lambda: self.bridge.worker.waiting == 0, timeout=30_000)

    def teach(self, count=1) -> None:
        for _ in range(count):
            self.bridge.click(Click((len(self.engine.session.finished), 20, 20)))
            self.bridge.accept()
            self.wait()

    @property
    def outlines(self) -> list[Labels]:
        return [layer for layer in self.viewer.layers if OUTLINE_KEY in layer.metadata]


@pytest.fixture
def desks(qtbot, volume, make_engine):
    made = []

    def make(engine=None, wish=None):
        made.append(Desk(qtbot, volume, engine or make_engine(policy=lambda: FakePolicy(0, 1.0)), wish))
        return made[-1]

    yield make
    for each in made:
        each.bridge.close()
        assert each.bridge.worker.join(60)


# --- wishes ---


def test_versions_reach_the_window_and_every_wish_can_be_undone(desks):
    desk = desks()
    desk.teach(3)
    session = desk.engine.session
    assert [version.number for version in desk.bridge.state.versions.versions] == [0, 1, 2, 3]
    for wish in (lambda: desk.bridge.go_back(1), desk.bridge.forget, lambda: desk.bridge.pin(2, True)):
        before = session._segmenter.snapshot(), session.versions
        wish()
        desk.wait()
        assert session.versions != before[1]
        assert desk.bridge.state.versions == session.versions
        desk.bridge.undo()
        desk.wait()
        assert (session._segmenter.snapshot(), session.versions) == before


def test_where_nothing_was_learnt_there_is_nothing_to_forget(desks):
    desk = desks()
    nothing = "there is nothing to forget: the model is as it was shipped"
    desk.bridge.forget()
    desk.wait()
    assert (desk.said[-1], desk.bridge.state.can_undo) == (nothing, False)
    desk.teach()
    for words in ("the model is as it was shipped; Ctrl+Z brings back what it learnt", nothing):
        desk.bridge.forget()
        desk.wait()
        assert desk.said[-1] == words
    desk.bridge.undo()  # the one that forgot something
    desk.wait()
    assert desk.engine.session.taught


def test_the_status_line_says_what_the_lesson_brought(desks):
    desk = desks()
    desk.teach()
    assert desk.said[-1].endswith("the first click got 100 % of it right, untaught it would have been 100 %")
    desk.teach()
    assert "learnt from" in desk.said[-1]
    assert "untaught it would have been 7" in desk.said[-1]


def test_a_refusal_is_said_in_words(desks, make_engine):
    desk = desks(make_engine(policy=lambda: FakePolicy(0, 1.0, refusing=True)))
    desk.teach()
    assert desk.said[-1].startswith("learning was refused")
    assert len(desk.bridge.state.versions.refusals) == 1


def test_exporting_and_beginning_with_what_was_exported(desks, tmp_path, told):
    desk = desks()
    desk.teach(2)
    desk.bridge.export(1, tmp_path / "one.safetensors")
    desk.wait()
    assert desk.said[-1] == "version 1 is in one.safetensors"
    assert FakeStore().load(tmp_path / "one.safetensors") == DiskWeights(6.0, 1)
    desk.bridge.export(1, tmp_path / "nowhere" / "one.safetensors")
    desk.wait()
    assert told()
    other = desks(wish=Wish(knowledge=tmp_path / "one.safetensors"))
    assert other.engine.session._segmenter.snapshot() == DiskWeights(6.0, 1)
    assert other.bridge.state.versions.current.sentence == "file one.safetensors"


def test_a_study_goes_on_in_the_next_window(desks):
    desks(wish=Wish(cohort="mri")).teach(2)
    assert desks(wish=Wish(cohort="mri")).engine.session._segmenter.snapshot() == DiskWeights(7.0, 2)
    assert desks().engine.session._segmenter.snapshot() == DiskWeights(5.0)


# --- the look ---


def test_peeking_outlines_the_untaught_answer_and_leaves_everything_else_alone(desks):
    desk = desks()
    desk.teach(2)
    desk.bridge.click(Click((4, 20, 20)))
    desk.wait()
    session, active = desk.engine.session, desk.viewer.layers.selection.active
    labels = next(layer for layer in desk.viewer.layers if isinstance(layer, Labels))
    before = session._segmenter.snapshot(), session.versions, session.clicks, labels.data.copy(), session._journal.path.read_bytes()
    desk.bridge.peek(True)
    desk.wait()
    (outline,) = desk.outlines
    assert outline.visible
    assert outline.data.sum() == 81  # a disk of radius 5; the taught model says 7
    assert outline.data[4].sum() == 81
    assert (labels.data[4] == 3).sum() > 81
    assert desk.said[-1].startswith("outlined")
    desk.bridge.peek(False)
    assert not outline.visible
    assert desk.viewer.layers.selection.active is active
    assert session._segmenter.snapshot() is before[0]
    assert (session.versions, session.clicks) == before[1:3]
    np.testing.assert_array_equal(labels.data, before[3])
    assert session._journal.path.read_bytes() == before[4]
    assert desk.said[-1].startswith("good?")
    np.testing.assert_allclose(outline.data_to_world((1, 2, 3)), desk.image_layer.data_to_world((1, 2, 3)))
    desk.bridge.stop()
    assert desk.outlines == []


def test_peeking_again_at_the_same_clicks_asks_nobody(desks, monkeypatch):
    desk = desks()
    desk.bridge.click(Click((4, 20, 20)))
    desk.wait()
    desk.bridge.peek(True)
    desk.wait()
    desk.bridge.peek(False)
    monkeypatch.setattr(desk.engine.session, "peek", lambda plane: 1 / 0)
    desk.bridge.peek(True)
    assert desk.outlines[0].visible
    desk.bridge.peek(False)


def test_an_answer_that_comes_after_the_key_is_up_or_after_another_click_is_not_shown(desks, slow_engine):
    gate = threading.Event()
    gate.set()
    desk = desks(slow_engine(gate=gate))
    desk.bridge.click(Click((4, 20, 20)))
    desk.wait()
    gate.clear()
    desk.bridge.peek(True)
    desk.bridge.peek(False)
    gate.set()
    desk.wait()
    assert desk.outlines == []
    gate.clear()
    desk.bridge.click(Click((4, 25, 20)))
    desk.bridge.peek(True)  # the state before that click is answered
    gate.set()
    desk.wait()
    assert not any(outline.visible for outline in desk.outlines)


def test_there_must_be_a_click_to_peek_at(desks):
    desk = desks()
    desk.bridge.peek(True)
    desk.wait()
    assert desk.said[-1].startswith("click on an object first")
    assert desk.outlines == []


# --- the panel ---

VERSIONS = Catalogue(
    (
        Version(0, origin="as shipped"),
        Version(1, 0, objects=(1,), time="2026-01-02T03:04:05+00:00", effort=Effort(2, 0.8, 0.4)),
        Version(2, 1, objects=(2,), pinned=True),
    ),
    1,
    (Refusal(3, "learning was refused: too bad", 1),),
    (Effort(2, 0.8, 0.4), Effort(1, 0.6, 0.2)),
)


@pytest.fixture
def panel(qtbot):
    made = ModelPanel()
    qtbot.addWidget(made)
    made.unfold(True)
    return made


def test_the_panel_lists_versions_refusals_and_what_was_saved(panel):
    panel.show_versions(VERSIONS)
    lines = [panel.list.item(i).text() for i in range(panel.list.count())]
    assert [line.split()[0] for line in lines] == ["2", "✕", "▸", "0"]
    assert "★ object 2" in lines[0]
    assert "object 3: refused" in lines[1]
    assert "80 % (40 %)" in lines[2]
    assert panel.list.item(1).toolTip() == "learning was refused: too bad"
    assert panel.list.item(2).font().bold()
    assert panel.summary.text() == "Version 1 (object 1). 2 objects: the first click gets 70 % right, untaught 30 %"
    panel.show_versions(None)
    assert panel.list.count() == 0
    assert saved(()) == "nothing accepted yet"


def test_before_the_first_session_there_is_no_version_to_do_anything_with(panel):
    each = (panel.go_back, panel.pin, panel.export, panel.forget, panel.peek)
    assert [button.isEnabled() for button in each] == [False] * 5
    assert panel.summary.text() == "no session"


def test_the_buttons_speak_of_the_chosen_version(panel, qtbot, monkeypatch):
    panel.show_versions(VERSIONS)
    assert not panel.go_back.isEnabled()
    panel.list.setCurrentRow(0)
    with qtbot.waitSignal(panel.go_back_clicked) as went:
        panel.go_back.click()
    assert went.args == [2]
    assert panel.pin.text() == "Unpin"
    with qtbot.waitSignal(panel.pin_clicked) as pinned:
        panel.pin.click()
    assert pinned.args == [2, False]
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: ("/tmp/x.safetensors", ""))
    with qtbot.waitSignal(panel.export_clicked) as exported:
        panel.export.click()
    assert exported.args == [2, Path("/tmp/x.safetensors"), False]
    panel.show_versions(VERSIONS.using(2))
    assert panel._chosen() == 2, "the choice stays when the list changes"


def test_study_and_file_are_what_the_user_chose(panel, monkeypatch):
    assert (panel.cohort, panel.knowledge) == (None, None)
    panel.study.setCurrentText(" mri study ")
    assert panel.cohort == "mri study"
    panel.list_studies(("em", "mri"))
    assert panel.cohort == "mri study"
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: ("/tmp/one.safetensors", ""))
    panel.begin_with.click()
    assert (panel.knowledge, panel.begin_with.text()) == (Path("/tmp/one.safetensors"), "one.safetensors")
    panel.begin_with.click()
    assert (panel.knowledge, panel.begin_with.text()) == (None, "as shipped")


def test_states_of_sessions_carry_their_versions(desks):
    desk = desks()
    assert State.of(desk.engine.session).versions == desk.engine.session.versions


# --- in a real window ---


def test_the_panel_in_a_real_window(make_napari_viewer, monkeypatch, hands, volume, make_engine, qtbot, tmp_path):
    monkeypatch.setattr(napari, "Viewer", lambda **options: make_napari_viewer(show=True, **options))
    engine = make_engine(policy=lambda: FakePolicy(0, 1.5))
    viewer, widget = open_window(volume, engine=engine)
    try:
        viewer.window.resize(1280, 800)
        window = hands(viewer, widget)
        widget.model.unfold(True)
        widget.model.study.setCurrentText("mri")
        window.press(widget.start)
        assert engine.wishes[-1].cohort == "mri"
        assert not widget.model.study.isEnabled()
        for column in (12, 30):
            window.click(window.plane, 20, column)
            window.press(widget.accept)
        engine.session._model.policy.refusing = True
        window.click(window.plane, 34, 8)
        window.press(widget.accept)
        assert widget.status.words.startswith("learning was refused")
        window.click(window.plane, 8, 40)
        assert widget.model.list.count() == 4

        points = window.points
        window.activate(points)
        key = Qt.Key(ord(KEYS[PEEK]))
        QTest.keyPress(window.keyboard, key)
        window.wait()
        (outline,) = [layer for layer in viewer.layers if OUTLINE_KEY in layer.metadata]
        assert outline.visible
        assert viewer.layers.selection.active is points
        names = [widget.more.labels.itemText(i) for i in range(widget.more.labels.count())]
        assert outline.name not in names
        picture = viewer.window.screenshot(str(tmp_path / "peek.png"), canvas_only=False)
        assert picture[..., :3].std() > 10
        assert picture.shape[0] <= 800
        assert picture.shape[1] <= 1280
        assert widget.model.peek.mapTo(widget, QPoint(0, widget.model.peek.height())).y() <= widget.height()
        QTest.keyRelease(window.keyboard, key)
        assert not outline.visible
        QTest.mousePress(widget.model.peek, Qt.MouseButton.LeftButton)
        window.wait()
        assert outline.visible
        QTest.mouseRelease(widget.model.peek, Qt.MouseButton.LeftButton)
        assert not outline.visible

        widget.model.list.setCurrentRow(2)
        window.press(widget.model.go_back)
        assert engine.session.versions.number == 1
        window.activate(points)
        window.key(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
        assert engine.session.versions.number == 2
        window.press(widget.model.pin)
        assert engine.session.versions[1].pinned
        widget.more.unfold(True)
        assert not widget.model.list.isVisible()
        window.press(widget.start)
        assert widget.model.study.isEnabled()
    finally:
        widget.leave()
        assert widget.bridge.worker.join(60)
