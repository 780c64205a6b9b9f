"""The table of measurements, with layers as a user would have them."""

from __future__ import annotations

import csv
import threading

import numpy as np
import pytest
from napari.components import ViewerModel
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QFileDialog, QMessageBox

from napari_apprentice import files, measure
from napari_apprentice._napari import storage
from napari_apprentice._napari.contributions import image_layer
from napari_apprentice._napari.measure_table import MeasureTable
from napari_apprentice._napari.placement import LEGEND_KEY
from napari_apprentice._napari.table_model import TableModel
from napari_apprentice.fakes import DiskSegmenter, FakePolicy
from napari_apprentice.journal import Journal
from napari_apprentice.legend import Legend
from napari_apprentice.session import Session
from napari_apprentice.types import Click, Image

LEFT = Qt.MouseButton.LeftButton


@pytest.fixture
def objects(volume):
    labels = np.zeros(volume.shape, np.uint16)
    labels[1:4, 5:15, 5:20] = 3
    labels[3, 10:20, 10:30] = 3
    labels[5:7, 20:30, 20:40] = 12
    return labels


def add(viewer, image, labels, **where):
    data, arguments, _ = image_layer(image)
    layer = viewer.add_image(data, **arguments)
    return layer, viewer.add_labels(labels, name="objects", **(where or {"scale": layer.scale, "translate": layer.translate}))


@pytest.fixture
def table(qtbot, volume, objects):
    """The widget on a viewer with a volume and two objects."""
    viewer = ViewerModel()
    add(viewer, volume, objects)
    made = MeasureTable(viewer)
    qtbot.addWidget(made)
    yield made
    made.leave()
    assert made.worker.join(60)


def press(qtbot, table, button):
    qtbot.mouseClick(button, LEFT)
    qtbot.waitUntil(lambda: table.worker.waiting == 0, timeout=30_000)


def shown(table):
    model = table.view.model()
    names = [model.headerData(i, Qt.Orientation.Horizontal) for i in range(model.columnCount())]
    cells = [[model.data(model.index(r, c)) for c in range(model.columnCount())] for r in range(model.rowCount())]
    return [dict(zip(names, row, strict=True)) for row in cells]


def test_one_object_is_not_called_objects(qtbot, table):
    layer = next(layer for layer in table._viewer.layers if layer.name == "objects")
    layer.data = np.where(layer.data == 3, 3, 0)
    press(qtbot, table, table.start)
    assert table.status.words == "1 object in objects."


def test_the_table_shows_and_saves_what_the_engine_measures(qtbot, table, volume, objects, tmp_path, monkeypatch):
    where = []
    real = measure.measure
    monkeypatch.setattr(measure, "measure", lambda *a, **k: where.append(threading.current_thread()) or real(*a, **k))
    assert not table.save.isEnabled()
    press(qtbot, table, table.start)
    assert where[0] is not threading.main_thread()
    rows = shown(table)
    assert [row["label"] for row in rows] == ["3", "12"]
    measured = real(objects, volume)
    assert [row["volume mm3"] for row in rows] == [f"{one.size:.6g}" for one in measured]
    assert "clicks" not in rows[0]
    assert table.status.words == "2 objects in objects."

    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(tmp_path / "table.csv"), ""))
    press(qtbot, table, table.save)
    with (tmp_path / "table.csv").open() as file:
        saved = list(csv.DictReader(file))
    assert [(row["case"], row["labels"], row["label"]) for row in saved] == [("scan", "objects", "3"), ("scan", "objects", "12")]
    np.testing.assert_allclose([float(row["surface_mm2"]) for row in saved], [one.border for one in measured], rtol=1e-9)


def test_a_stack_of_nanometres_is_measured_in_micrometres_unless_somebody_wishes_otherwise(qtbot, objects, tmp_path, monkeypatch):
    viewer = ViewerModel()
    stack = Image(np.ones((1, *objects.shape), np.uint8), np.diag([5e-5, 8e-6, 8e-6, 1.0]), "mm", name="stack")
    add(viewer, stack, objects)
    table = MeasureTable(viewer)
    qtbot.addWidget(table)
    press(qtbot, table, table.start)
    sizes = [one.size for one in measure.measure(objects, stack)]
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(tmp_path / "table.csv"), ""))
    for words, unit, per_mm in (
        ("automatic", "um", 1e3),
        ("mm", "mm", 1.0),
        ("nm", "nm", 1e6),
        ("µm", "um", 1e3),
        ("automatic", "um", 1e3),
    ):
        table.unit.setCurrentText(words)
        qtbot.waitUntil(lambda: table.worker.waiting == 0, timeout=30_000)
        assert [row[f"volume {unit}3"] for row in shown(table)] == [f"{size * per_mm**3:.6g}" for size in sizes]
        press(qtbot, table, table.save)
        saved = list(csv.DictReader((tmp_path / "table.csv").open()))
        assert [float(row[f"volume_{unit}3"]) for row in saved] == pytest.approx([size * per_mm**3 for size in sizes], rel=1e-9)
    table.unit.setCurrentText("mm")
    press(qtbot, table, table.start)
    assert "volume mm3" in shown(table)[0]
    assert table.unit.isEnabled()
    table.leave()


def test_each_object_is_saved_in_the_geometry_of_the_image_and_nothing_is_overwritten_unasked(
    qtbot, table, volume, objects, tmp_path, monkeypatch
):
    press(qtbot, table, table.start)
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(tmp_path / "m.nii.gz"), ""))
    asked = []
    monkeypatch.setattr(QMessageBox, "question", lambda *a: asked.append(a[-1]) or QMessageBox.StandardButton.No)
    press(qtbot, table, table.export)
    assert table.status.words == "Saved 2 files, m_03.nii.gz to m_12.nii.gz."
    assert not asked
    np.testing.assert_array_equal(files.read_labels(tmp_path / "m_12.nii.gz", like=volume), objects == 12)
    (tmp_path / "m_12.nii.gz").unlink()
    press(qtbot, table, table.export)
    assert asked == ["m_03.nii.gz exists already. Overwrite?"]
    assert not (tmp_path / "m_12.nii.gz").exists()


def test_a_click_on_an_object_shows_its_largest_slice(qtbot, table):
    press(qtbot, table, table.start)
    dims = table._viewer.dims
    for line, plane in ((0, 3), (1, 5)):
        table.view.clicked.emit(table.view.model().index(line, 0))
        world = table._found.layer.data_to_world((plane, 0, 0))
        assert dims.point[0] == pytest.approx(world[0])


def test_the_table_of_some_labels_does_not_stand_under_the_name_of_others(qtbot, table):
    press(qtbot, table, table.start)
    assert len(shown(table)) == 2
    measured = next(layer for layer in table._viewer.layers if layer.name == "objects")
    other = table._viewer.add_labels(np.zeros(measured.data.shape, int), name="other", scale=measured.scale, translate=measured.translate)
    assert len(shown(table)) == 2
    table.labels.setCurrentText(other.name)
    assert shown(table) == []
    assert not table.save.isEnabled()
    press(qtbot, table, table.start)
    assert table.status.words == "other is empty."


def test_labels_that_lie_elsewhere_are_refused_in_one_sentence(qtbot, volume, objects):
    viewer = ViewerModel()
    image, _ = add(viewer, volume, objects, scale=(-3.0, 0.5, 0.6), translate=(40.0, -10.0, 7.0))
    small = viewer.add_labels(objects[:4], name="small", scale=image.scale, translate=image.translate)
    table = MeasureTable(viewer)
    qtbot.addWidget(table)
    press(qtbot, table, table.start)
    assert table.status.words == (
        "the labels 'small' of shape (4, 40, 50) have another shape than (8, 40, 50), that of the image 'scan'; "
        "expected labels on the grid of the image."
    )
    viewer.layers.remove(small)
    press(qtbot, table, table.start)
    assert "lie up to 9.8 voxels away from the image 'scan'" in table.status.words
    assert shown(table) == []
    viewer.layers.clear()
    assert not table.start.isEnabled()
    table.leave()


def test_measuring_can_be_cancelled(qtbot, table, monkeypatch):
    gate = threading.Event()

    def slow(labels, image, *, on_layers):
        assert gate.wait(30)
        on_layers(1, 2)
        raise AssertionError("it went on")

    monkeypatch.setattr(measure, "measure", slow)
    qtbot.mouseClick(table.start, LEFT)
    assert table.start.text() == "Cancel"
    qtbot.mouseClick(table.start, LEFT)
    gate.set()
    qtbot.waitUntil(lambda: table.worker.waiting == 0, timeout=30_000)
    assert (table.status.words, table.start.text()) == ("Cancelled.", "Measure")


@pytest.mark.parametrize("extension", [".nii.gz", ".mha", ".ome.zarr"])
def test_saving_each_object_can_be_cancelled_and_leaves_what_was_there(qtbot, table, objects, volume, tmp_path, monkeypatch, extension):
    press(qtbot, table, table.start)
    old = files.write(tmp_path / f"m_03{extension}", objects == 12, like=volume)
    there, gate, written = sorted(tmp_path.rglob("*")), threading.Event(), []
    codec = files._format(old, files.WRITABLE, OSError).codec
    real = codec.save

    def slow(path, *args, go_on, **options):
        if written:
            assert gate.wait(30)
        real(path, *args, go_on=go_on, **options)
        written.append(path)

    monkeypatch.setattr(codec, "save", slow)
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(tmp_path / f"m{extension}"), ""))
    monkeypatch.setattr(QMessageBox, "question", lambda *_: QMessageBox.StandardButton.Yes)
    qtbot.mouseClick(table.export, LEFT)
    qtbot.waitUntil(lambda: len(written) == 1, timeout=30_000)
    assert table.export.text() == "Cancel"
    assert not table.start.isEnabled()
    qtbot.mouseClick(table.export, LEFT)
    gate.set()
    qtbot.waitUntil(lambda: table.worker.waiting == 0, timeout=30_000)
    assert (table.status.words, table.export.text(), table.start.isEnabled()) == ("Cancelled.", "Save each…", True)
    assert sorted(tmp_path.rglob("*")) == there
    np.testing.assert_array_equal(files.read_labels(old, like=volume), objects == 12)
    press(qtbot, table, table.export)
    assert table.status.words == f"Saved 2 files, m_03{extension} to m_12{extension}."
    np.testing.assert_array_equal(files.read_labels(old, like=volume), objects == 3)


def test_a_table_that_is_closed_writes_the_files_that_were_asked_for(qtbot, table, volume, tmp_path, monkeypatch):
    press(qtbot, table, table.start)
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(tmp_path / "m.nii.gz"), ""))
    qtbot.mouseClick(table.export, LEFT)
    table.leave()
    assert table.worker.join(60)
    assert sorted(path.name for path in tmp_path.glob("m*")) == ["m_03.nii.gz", "m_12.nii.gz"]


def test_work_is_told_where_the_newest_session_led_to_these_labels(qtbot, volume):
    image = Image(volume.data, volume.affine, "mm", "scan")
    session = Session(image, DiskSegmenter(), FakePolicy(), journal=Journal.create(storage.fresh_folder(image), image))
    session.add(Click((2, 20, 20)))
    session.add(Click((2, 24, 20)))
    session.accept()
    viewer = ViewerModel()
    _, layer = add(viewer, image, np.array(session.labels))
    table = MeasureTable(viewer)
    qtbot.addWidget(table)
    press(qtbot, table, table.start)
    assert [row["clicks"] for row in shown(table)] == ["2"]
    layer.data[0, 0, 0] = 1  # by hand, without the session
    press(qtbot, table, table.start)
    assert "clicks" not in shown(table)[0]
    table.leave()


def test_classes_that_the_session_knows_stand_in_the_table_before_they_are_saved(qtbot, table):
    table._viewer.layers["objects"].metadata[LEGEND_KEY] = Legend().naming(12, "nucleus")
    press(qtbot, table, table.start)
    assert [(row["label"], row["class"]) for row in shown(table)] == [("3", ""), ("12", "nucleus")]


def test_numbers_are_sorted_as_numbers_and_nothing_comes_last():
    model = TableModel([{"a": 10.0}, {"a": float("nan")}, {"a": 9.0}, {"a": None}, {"a": 100.0}])
    model.sort(0)
    assert [one["a"] for one in model.rows][:3] == [9.0, 10.0, 100.0]
    model.sort(0, Qt.SortOrder.DescendingOrder)
    assert [one["a"] for one in model.rows][:3] == [100.0, 10.0, 9.0]
    assert [model.data(model.index(line, 0)) for line in range(5)] == ["100", "10", "9", "", ""]
    model.sort(-1)
    assert len(model.rows) == 5


def test_it_is_opened_from_the_menu_and_leaves_nothing_behind(make_napari_viewer, qtbot, volume, objects, tmp_path):
    viewer = make_napari_viewer()
    path = files.write(tmp_path / "cells_labels.nii.gz", objects, like=volume)
    (tmp_path / "cells_labels.tsv").write_text("index\tname\n12\tnucleus\n")
    viewer.open(files.save_image(tmp_path / "cells.nii.gz", volume), plugin="napari-apprentice")
    viewer.open(path, plugin="napari-apprentice")
    dock, table = viewer.window.add_plugin_dock_widget("napari-apprentice", "Measure objects")
    press(qtbot, table, table.start)
    assert [(row["label"], row["class"]) for row in shown(table)] == [("3", ""), ("12", "nucleus")]
    viewer.window.remove_dock_widget(dock)
    assert table.worker.join(60)
    viewer.layers.clear()
