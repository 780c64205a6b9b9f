"""The progress plot shows what it is told, where it is told."""

from __future__ import annotations

import numpy as np
import pytest
from qtpy.QtGui import QColor, QImage

import napari
from napari_apprentice._napari.launch import open_window
from napari_apprentice._napari.progress_plot import TAUGHT_COLOR, UNTAUGHT_COLOR, ProgressPlot
from napari_apprentice.versions import Effort

EFFORTS = (Effort(6, 0.5, 0.5), Effort(3, 0.8, 0.4), Effort(1, 0.9, 0.6))


@pytest.fixture
def plot(qtbot):
    made = ProgressPlot()
    qtbot.addWidget(made)
    made.resize(320, 48)
    return made


def drawn(widget, color):
    """(H, W) bool: where a widget is of a colour."""
    picture = widget.grab().toImage().convertToFormat(QImage.Format.Format_RGB32)
    raw = picture.constBits().asstring(picture.sizeInBytes())
    values = np.frombuffer(raw, np.uint8).reshape(picture.height(), picture.bytesPerLine() // 4, 4)[:, : picture.width(), 2::-1]
    wanted = QColor(color)
    return (np.abs(values.astype(int) - [wanted.red(), wanted.green(), wanted.blue()]) < 40).all(axis=2)


def test_nothing_is_shown_before_the_first_object_is_accepted(plot):
    plot.show()
    plot.show_efforts((), 3)
    assert plot.isHidden()
    plot.show_efforts(EFFORTS[:1], 0)
    assert plot.isVisible()
    plot.show_efforts((), 0)
    assert plot.isHidden()


def test_words_are_the_means_of_the_newest_objects(plot):
    plot.show_efforts((*[Effort(99, 0.0, 0.0)] * 4, *EFFORTS, *EFFORTS[1:]), 0)
    assert plot.clicks_words.text() == "2.8 clicks each"
    assert "78 %&nbsp;" in plot.shares_words.text()
    assert "50 % untaught" in plot.shares_words.text()


def test_bars_are_as_high_as_clicks_and_that_of_the_open_object_is_hollow(plot, qtbot):
    plot.show()
    plot.show_efforts(EFFORTS, 4)
    bars = plot.clicks
    seen = drawn(bars, TAUGHT_COLOR)
    inside = [int(bars.left_of(index) + bars.column_px / 2 - 1) for index in range(4)]
    heights = [int(seen[:-1, x].sum()) for x in inside]
    assert heights[0] == pytest.approx(2 * heights[1], abs=1)
    assert heights[0] == pytest.approx(6 * heights[2], abs=3)
    assert 0 < heights[3] <= 3, "only its outline"
    plot.show_efforts(EFFORTS, 0)
    assert not drawn(bars, TAUGHT_COLOR)[:-1, inside[3]].any()


def test_lines_are_higher_where_the_answer_was_better(plot):
    plot.show()
    plot.show_efforts(EFFORTS, 0)
    lines = plot.shares
    taught, untaught = (drawn(lines, color) for color in (TAUGHT_COLOR, UNTAUGHT_COLOR))
    for index, effort in enumerate(EFFORTS[1:], start=1):
        x = int(lines.left_of(index) + lines.column_px / 2)
        for picture, share in ((taught, effort.taught_iou), (untaught, effort.untaught_iou)):
            assert np.flatnonzero(picture[:-1, x]).mean() == pytest.approx(lines.height_of(share), abs=1.5)


def test_every_column_says_what_it_is_of(plot):
    plot.show_efforts(EFFORTS, 4)
    bars, lines = plot.clicks, plot.shares
    assert [bars.words_of(index) for index in range(4)] == [
        "accepted object 1: 6 clicks",
        "accepted object 2: 3 clicks",
        "accepted object 3: 1 click",
        "open object: 4 clicks",
    ]
    assert lines.words_of(1) == "accepted object 2: 80 % right at the first click, untaught 40 %"
    for widget in (bars, lines):
        for index in range(widget.count):
            assert widget.index_at(widget.left_of(index) + 1) == index
        assert widget.index_at(widget.left_of(widget.count) + 1) is None


def test_of_more_objects_than_there_is_room_for_the_newest_are_shown(plot):
    plot.show()
    plot.show_efforts(EFFORTS * 200, 2)
    bars = plot.clicks
    assert bars.first > 0
    assert bars.count == 601
    assert bars.left_of(bars.count) <= bars.width() + 1e-6
    assert bars.index_at(bars.left_of(600) + 1) == 600
    assert drawn(bars, TAUGHT_COLOR).any()


def test_the_window_shows_what_objects_took_and_follows_an_undo(make_napari_viewer, monkeypatch, volume, engine, hands):
    monkeypatch.setattr(napari, "Viewer", lambda **options: make_napari_viewer(show=True, **options))
    viewer, widget = open_window(volume, engine=engine)
    try:
        window = hands(viewer, widget)
        window.press(widget.start)
        window.click(window.plane, 20, 20)
        assert widget.progress.isHidden()
        window.click(window.plane, 20, 26)
        window.press(widget.accept)
        window.click(window.plane, 10, 40)
        plot = widget.progress
        assert plot.isVisible()
        assert (plot.clicks.values, plot.clicks.open) == ((2,), 1)
        (effort,) = engine.session.versions.efforts
        assert plot.shares.values == ((effort.taught_iou, effort.untaught_iou),)
        for fold in (widget.model, widget.more):
            fold.unfold(True)
            assert plot.isHidden()
        widget.more.unfold(False)
        assert plot.isVisible()
        window.press(widget.undo)
        assert plot.clicks.open == 0
        window.press(widget.undo)
        assert plot.isHidden()
        assert plot.clicks.open == 2
        window.press(widget.start)  # closes the session
        assert plot.isHidden()
    finally:
        widget.leave()
        assert widget.bridge.worker.join(60)
