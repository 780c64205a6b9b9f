"""Saving from the window: it can be called off, and what lies where comes back where it lay."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
from napari.components import ViewerModel
from qtpy.QtWidgets import QFileDialog

from napari_apprentice import files
from napari_apprentice._napari.contributions import get_reader, image_layer
from napari_apprentice._napari.saver import NOT_SAVED
from napari_apprentice._napari.widget import ApprenticeWidget
from napari_apprentice._napari.worker import Task
from napari_apprentice.legend import read_legend
from napari_apprentice.types import Image


@pytest.fixture
def working(qtbot, engine, volume, tmp_path):
    """A widget with an open session of a file, and `wait`."""
    viewer = ViewerModel()
    widget = ApprenticeWidget(viewer, engine)
    qtbot.addWidget(widget)
    widget.wait = lambda: qtbot.waitUntil(lambda: widget.bridge.worker.waiting == 0, timeout=30_000)
    widget.show()
    data, arguments, _ = image_layer(files.read(files.save_image(tmp_path / "scan.nii.gz", volume)))
    viewer.add_image(data, **arguments)
    widget.start.click()
    widget.wait()
    yield widget
    widget.leave()
    assert widget.bridge.worker.join(60)


def add_mask(session, value):
    session.paint((slice(2, 3), slice(5, 15), slice(5, 15)), np.full((1, 10, 10), value))


def test_a_save_is_called_off_and_the_old_file_stays(working, qtbot, tmp_path, monkeypatch):
    path, began = tmp_path / "scan_labels.nii.gz", threading.Event()
    working.save.click()
    working.wait()
    before = path.read_bytes()

    def endless(path, labels, *, like, go_on):
        began.set()
        end = time.monotonic() + 30
        while time.monotonic() < end:
            go_on()
            time.sleep(0.01)

    monkeypatch.setattr(files, "write", endless)
    working.save.click()
    assert (working.save.text(), working.save.isEnabled()) == ("Cancel", True)
    qtbot.waitUntil(began.is_set, timeout=30_000)
    working.save.click()
    working.wait()
    assert (working.save.text(), working.status.words) == ("Save labels", NOT_SAVED)
    assert path.read_bytes() == before
    monkeypatch.undo()
    add_mask(working.bridge._desk.session, 1)
    working.save.click()
    working.wait()
    assert working.save.text() == "Save labels"
    assert files.read_labels(path).sum() == 100


def test_a_save_that_still_waits_for_its_turn_is_called_off(working, tmp_path):
    gate = threading.Event()
    working.bridge.worker.submit(Task(lambda: "learning", lambda: gate.wait(30)))
    working.save.click()
    working.save.click()
    gate.set()
    working.wait()
    assert working.status.words == NOT_SAVED
    assert not (tmp_path / "scan_labels.nii.gz").exists()


def test_a_save_after_the_last_name_was_removed_removes_it_beside_the_labels(working, tmp_path):
    session, found = working.bridge._desk.session, []
    add_mask(session, 1)
    for name in ("nucleus", ""):
        session.name(1, name)
        working.save.click()
        working.wait()
        found.append(read_legend(tmp_path / "scan_labels.tsv").names)
    assert found == [{1: "nucleus"}, {}]


def test_a_save_that_fails_can_be_tried_again(working, tmp_path, monkeypatch, told):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    working.save.click()
    working.wait()
    monkeypatch.undo()
    assert working.save.text() == "Save labels"
    assert ["the disk is full" in sentence for sentence in told()] == [True]
    working.save.click()
    working.wait()
    assert (tmp_path / "scan_labels.nii.gz").exists()


def test_a_save_that_was_asked_for_is_done_though_the_session_closes(working, tmp_path):
    gate = threading.Event()
    working.bridge.worker.submit(Task(lambda: "learning", lambda: gate.wait(30)))
    working.save.click()
    working.start.click()
    assert working.save.text() == "Save labels"
    gate.set()
    working.wait()
    assert (tmp_path / "scan_labels.nii.gz").exists()


def test_what_an_earlier_session_saved_is_not_overwritten_unasked(working, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(ApprenticeWidget, "_ask_whether", lambda _, path: asked.append(path))
    add_mask(working.bridge._desk.session, 1)
    for _ in range(2):  # once more is no question
        working.save.click()
        working.wait()
    assert asked == []
    working.start.click()  # closes it
    working.wait()
    working.start.click()
    working.wait()
    working.save.click()
    working.wait()
    path = tmp_path / "scan_labels.nii.gz"
    assert asked == [path]
    assert files.read_labels(path).any()


def test_every_time_point_of_a_series_is_saved_to_a_file_of_its_own(qtbot, engine, tmp_path):
    values = np.random.default_rng(0).normal(size=(20, 20, 6, 3)).astype(np.float32)
    series = nibabel.Nifti1Image(values, np.diag([0.5, 0.5, 2, 1]))
    series.header.set_xyzt_units("mm", "sec")
    nibabel.save(series, tmp_path / "series.nii.gz")
    viewer = ViewerModel()
    widget = ApprenticeWidget(viewer, engine)
    qtbot.addWidget(widget)
    widget.show()
    shown(viewer, tmp_path / "series.nii.gz")
    for time_point in (0, 2):
        widget.questions.time.setValue(time_point)
        for button in (widget.questions.show_time, widget.start, widget.save, widget.start):
            if button is widget.save:
                add_mask(engine.session, time_point + 1)
            button.click()
            qtbot.waitUntil(lambda: widget.bridge.worker.waiting == 0, timeout=30_000)
    assert [files.read_labels(tmp_path / f"series_t{each}_labels.nii.gz").max() for each in (0, 2)] == [1, 3]
    assert not (tmp_path / "series_labels.nii.gz").exists()
    widget.leave()
    assert widget.bridge.worker.join(60)


def test_where_nothing_can_be_written_another_place_is_asked_for(working, tmp_path, monkeypatch):
    asked, elsewhere = [], tmp_path / "elsewhere"
    elsewhere.mkdir()

    def choose(_, title, proposal, kinds):
        asked.append(proposal)
        return str(elsewhere / "mine"), ""

    monkeypatch.setattr(QFileDialog, "getSaveFileName", choose)
    monkeypatch.setattr("os.access", lambda path, *_, **__: Path(path) != tmp_path)
    working.save.click()
    working.wait()
    assert asked == [str(Path.home() / "scan_labels.nii.gz")]
    assert (elsewhere / "mine.nii.gz").exists()


# --- places ---


def shown(viewer, path):
    data, arguments, kind = get_reader(str(path))(str(path))[0]
    return getattr(viewer, f"add_{kind}")(data, **arguments)


def test_a_sheared_volume_is_worked_on_and_its_labels_have_its_shear(qtbot, engine, volume, tmp_path):
    affine = np.array([[2.0, 0.3, 0, 4], [0, 0.5, 0.2, -10], [0.1, 0, 0.6, 7], [0, 0, 0, 1]])
    viewer = ViewerModel()
    widget = ApprenticeWidget(viewer, engine)
    qtbot.addWidget(widget)
    shown(viewer, files.save_image(tmp_path / "scan.nii.gz", Image(volume.data, affine, "mm")))
    widget.start.click()
    qtbot.waitUntil(lambda: widget.bridge.worker.waiting == 0, timeout=30_000)
    widget.save.click()
    qtbot.waitUntil(lambda: widget.bridge.worker.waiting == 0, timeout=30_000)
    widget.leave()
    assert widget.bridge.worker.join(60)
    saved = nibabel.load(tmp_path / "scan_labels.nii.gz")
    np.testing.assert_allclose(saved.affine, nibabel.load(tmp_path / "scan.nii.gz").affine, atol=1e-5)


@pytest.mark.parametrize("moved", [0, 100])
def test_labels_of_another_tile_of_a_picture_in_pixels_are_no_beginning(qtbot, engine, told, moved):
    viewer = ViewerModel()
    widget = ApprenticeWidget(viewer, engine)
    qtbot.addWidget(widget)
    viewer.add_image(np.random.default_rng(0).random((80, 80)), name="tile", translate=(100, 100))
    labels = np.zeros((80, 80), np.uint8)
    labels[5:9, 5:9] = 1
    viewer.add_labels(labels, name="drawn", translate=(100 - moved, 100))
    widget.more.labels.setCurrentIndex(1)
    widget.start.click()
    qtbot.waitUntil(lambda: widget.bridge.worker.waiting == 0, timeout=30_000)
    assert len(engine.sessions) == (not moved)
    assert not moved or "'drawn' lie up to 100 voxels away from the image 'tile'" in told()[-1]
    widget.leave()
    assert widget.bridge.worker.join(60)


@pytest.mark.parametrize("units", ["mm", "pixel"])
def test_labels_from_another_grid_are_no_beginning(qtbot, engine, volume, tmp_path, told, units):
    """Of the same shape, but elsewhere; where they say nothing of a place, as in voxels, the shape has to do."""
    viewer = ViewerModel()
    widget = ApprenticeWidget(viewer, engine)
    qtbot.addWidget(widget)
    shown(viewer, files.save_image(tmp_path / "scan.nii.gz", volume))
    moved = np.array(volume.affine)
    moved[1, 3] += 5
    place = Image(volume.data, moved if units == "mm" else None, units)
    labels = np.zeros(volume.shape, np.uint8)
    labels[2, 5:9, 5:9] = 1
    shown(viewer, files.write(tmp_path / f"other_labels{'.nii.gz' if units == 'mm' else '.tif'}", labels, like=place))
    widget.more.labels.setCurrentIndex(1)
    widget.start.click()
    qtbot.waitUntil(lambda: widget.bridge.worker.waiting == 0, timeout=30_000)
    if units == "mm":
        assert engine.sessions == []
        assert told()[-1] == (
            "the labels 'other_labels' lie up to 10 voxels away from the image 'scan'; expected labels on the grid of the image"
        )
    else:
        np.testing.assert_array_equal(engine.session.labels, labels)
    widget.leave()
    assert widget.bridge.worker.join(60)
