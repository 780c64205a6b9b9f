"""What a file does not say is asked, and never guessed: how large a voxel is, and which time point is meant."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import tifffile
from napari.components import ViewerModel
from qtpy.QtCore import QLocale, Qt

from napari_apprentice import files
from napari_apprentice._napari.contributions import get_reader, image_layer
from napari_apprentice._napari.placement import apart, image_of
from napari_apprentice._napari.questions import HOW_LARGE, WHICH_TIME, Length
from napari_apprentice._napari.widget import ApprenticeWidget
from napari_apprentice.geometry import world_to_voxel
from napari_apprentice.types import Image


@pytest.fixture
def asked(qtbot, engine):
    """A viewer with the widget, and `wait`."""
    viewer = ViewerModel()
    widget = ApprenticeWidget(viewer, engine)
    qtbot.addWidget(widget)
    widget.wait = lambda: qtbot.waitUntil(lambda: widget.bridge.worker.waiting == 0, timeout=30_000)
    widget.show()
    yield viewer, widget
    widget.leave()
    assert widget.bridge.worker.join(60)


def add(viewer, path):
    ((data, arguments, _),) = get_reader(str(path))(str(path))
    return viewer.add_image(data, **arguments)


@pytest.fixture
def stack(tmp_path):
    """A volume whose file does not say how large a voxel is."""
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, np.random.default_rng(0).integers(0, 255, (6, 30, 40), dtype=np.uint8), photometric="minisblack")
    return path


@pytest.mark.parametrize("language", ["C", "de_DE", "en_US"])
def test_decimals_begin_with_a_point_or_a_comma_in_every_language(qtbot, language):
    before = QLocale()
    QLocale.setDefault(QLocale(language))
    try:
        side = Length()
    finally:
        QLocale.setDefault(before)
    qtbot.addWidget(side)
    side.setDecimals(4)
    side.setRange(0, 1e6)
    for text, value in (("0.5", 0.5), ("0,5", 0.5), ("1.25", 1.25), ("0,351", 0.351), ("1200", 1200.0)):
        side.lineEdit().selectAll()
        qtbot.keyClicks(side.lineEdit(), text)
        qtbot.keyClick(side.lineEdit(), Qt.Key.Key_Return)
        assert side.value() == value, text


def test_a_length_can_be_typed_wherever_the_click_into_its_field_was(asked, stack, qtbot):
    viewer, widget = asked
    layer = add(viewer, stack)
    widget.activateWindow()
    qtbot.waitUntil(widget.isActiveWindow, timeout=30_000)
    for side, length in zip(widget.questions.spacing, ("2", "0.5", "0,5"), strict=True):
        field = side.lineEdit()
        qtbot.mouseClick(field, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, field.rect().center())
        qtbot.wait(20)
        qtbot.keyClicks(widget.focusWidget(), length)
        qtbot.keyClick(widget.focusWidget(), Qt.Key.Key_Return)
    qtbot.mouseClick(widget.questions.state, Qt.MouseButton.LeftButton)
    np.testing.assert_allclose(layer.scale, (2, 0.5, 0.5))


def test_a_volume_without_a_spacing_is_not_started_before_somebody_says_it(asked, stack, engine, tmp_path):
    viewer, widget = asked
    layer = add(viewer, stack)
    questions = widget.questions
    assert questions.isVisible()
    widget.start.click()
    widget.wait()
    assert engine.sessions == []
    assert widget.status.words == HOW_LARGE
    assert not questions.state.isEnabled()
    for side, value in zip(questions.spacing, (4.0, 500.0, 250.0), strict=True):
        side.setValue(value)
    questions.unit.setCurrentText("µm")
    questions.state.click()
    assert not questions.isVisible()
    np.testing.assert_allclose(layer.scale, (4e-3, 0.5, 0.25))
    assert str(layer.units[0]) == "millimeter"
    widget.start.click()
    widget.wait()
    assert (engine.session.image.spacing, engine.session.image.units) == (pytest.approx((4e-3, 0.5, 0.25)), "mm")
    widget.bridge.save(tmp_path / "out.nii.gz")
    widget.wait()
    assert files.read(tmp_path / "out.nii.gz").spacing == pytest.approx((4e-3, 0.5, 0.25))


@pytest.mark.parametrize("size", [0.0, -2.0, float("nan")])
def test_a_size_that_cannot_be_is_asked_about_like_one_that_is_not_stated(asked, engine, tmp_path, size):
    viewer, widget = asked
    header = nibabel.Nifti1Header()
    header.set_data_shape((7, 6, 5))
    header["pixdim"][1:4], header["magic"], header["vox_offset"] = (0.5, 0.5, size), b"n+1", 352
    (tmp_path / "a.nii").write_bytes(header.binaryblock + bytes(4) + np.arange(210, dtype=np.float32).tobytes())
    add(viewer, tmp_path / "a.nii")
    assert widget.questions.isVisible()
    widget.start.click()
    widget.wait()
    assert (engine.sessions, widget.status.words) == ([], HOW_LARGE)
    for side, value in zip(widget.questions.spacing, (2.0, 0.5, 0.5), strict=True):
        side.setValue(value)
    widget.questions.state.click()
    widget.start.click()
    widget.wait()
    assert (engine.session.image.spacing, engine.session.image.units) == ((2.0, 0.5, 0.5), "mm")


@pytest.mark.parametrize("sizes", [(1.0, 1.0, 1.0), (3.0, 0.5, 0.5)])
def test_a_nifti_of_ones_without_a_unit_is_asked_about_and_keeps_its_sides(asked, engine, tmp_path, sizes):
    viewer, widget = asked
    affine = np.array([[-1.0, 0, 0, 9], [0, -1, 0, -4], [0, 0, 1, 2], [0, 0, 0, 1]])
    path = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.random.default_rng(0).integers(0, 255, (7, 6, 5), dtype=np.uint8), affine), path)
    files.write(tmp_path / "a_labels.nii.gz", np.ones((5, 6, 7), np.uint8), like=files.read(path))
    layer = add(viewer, path)
    ((data, arguments, _),) = get_reader(str(tmp_path / "a_labels.nii.gz"))("")
    labels = viewer.add_labels(data, **arguments)
    assert apart(labels, layer) is None
    assert widget.questions.isVisible()
    widget.start.click()
    widget.wait()
    assert (engine.sessions, widget.status.words) == ([], HOW_LARGE)
    for side, value in zip(widget.questions.spacing, sizes, strict=True):
        side.setValue(value)
    widget.questions.state.click()
    np.testing.assert_array_equal(labels.scale, layer.scale)
    assert (apart(labels, layer), labels.units) == (None, layer.units)
    later = viewer.add_labels(data, **arguments)
    assert apart(later, layer) is None, "it says nothing of a place"
    widget.start.click()
    widget.wait()
    image = engine.session.image
    assert (image.spacing, image.units) == (sizes, "mm")
    np.testing.assert_array_equal(world_to_voxel([(0.0, 0.0, 0.0)], image.affine), [(-2.0, -4.0, 9.0)])
    np.testing.assert_array_equal(np.sign(image.affine[:3, :3]), np.diag([1, -1, -1]))
    widget.bridge.save(tmp_path / "out.nii.gz")
    widget.wait()
    if sizes == (1.0, 1.0, 1.0):  # then the file was right, but for the unit
        np.testing.assert_array_equal(nibabel.load(tmp_path / "out.nii.gz").affine, affine)
    assert files.read(tmp_path / "out.nii.gz").spacing == sizes


def test_who_says_that_nobody_knows_works_in_voxels(asked, stack, engine):
    viewer, widget = asked
    layer = add(viewer, stack)
    widget.questions.unknown.click()
    assert not widget.questions.isVisible()
    widget.start.click()
    widget.wait()
    assert (engine.session.image.spacing, engine.session.image.units) == ((1, 1, 1), "pixel")
    widget.start.click()
    widget.wait()
    assert not widget.questions.isVisible(), "it is asked once"
    assert layer in viewer.layers


@pytest.mark.parametrize("image", ["volume", "photograph"])
def test_nothing_is_asked_of_a_volume_in_mm_or_of_a_picture(asked, request, image, engine):
    viewer, widget = asked
    data, arguments, _ = image_layer(request.getfixturevalue(image))
    viewer.add_image(data, **arguments)
    assert not widget.questions.isVisible()
    widget.start.click()
    widget.wait()
    assert len(engine.sessions) == 1


def test_a_layer_whose_scale_the_user_set_is_not_asked_about(asked):
    viewer, widget = asked
    viewer.add_image(np.zeros((5, 20, 20)), scale=(3, 1, 1))
    assert not widget.questions.isVisible()
    viewer.add_image(np.zeros((5, 20, 20)))
    assert widget.questions.isVisible()


def test_another_time_point_of_a_file_is_offered(asked, tmp_path, engine, told):
    viewer, widget = asked
    values = np.random.default_rng(0).normal(size=(9, 8, 7, 4)).astype(np.float32)
    series = nibabel.Nifti1Image(values, np.diag([0.5, 0.5, 2, 1]))
    series.header.set_xyzt_units("mm", "sec")
    nibabel.save(series, tmp_path / "series.nii.gz")
    assert files.time_points(tmp_path / "series.nii.gz") == 4
    layer = add(viewer, tmp_path / "series.nii.gz")
    assert widget.questions.time.isVisible()
    assert widget.questions.time.maximum() == 3
    widget.questions.time.setValue(2)
    widget.questions.show_time.click()
    widget.wait()
    np.testing.assert_array_equal(layer.data, values[..., 2].T)
    np.testing.assert_array_equal(image_of(layer).data[0], values[..., 2].T)
    assert widget.questions.time.value() == 2
    assert widget.status.words == "time point 2 of 4"
    widget.start.click()
    widget.wait()
    np.testing.assert_array_equal(engine.session.image.data[0], values[..., 2].T)
    assert not widget.questions.isVisible(), "a session is about one time point"
    widget.start.click()
    widget.wait()
    labels = viewer.layers[1]
    assert labels.visible
    widget.questions.time.setValue(3)
    widget.questions.show_time.click()
    widget.wait()
    assert not labels.visible, "they are of another time point"
    assert labels in viewer.layers
    assert widget.status.words == "time point 3 of 4; the labels of the one before are hidden"
    (tmp_path / "series.nii.gz").unlink()
    widget.questions.time.setValue(2)
    widget.questions.show_time.click()
    widget.wait()
    assert "does not exist" in told()[-1]


def test_of_a_layer_with_four_axes_one_time_point_is_taken_out(asked, engine, told):
    viewer, widget = asked
    values = np.random.default_rng(0).integers(0, 255, (3, 5, 20, 30), dtype=np.uint8)
    viewer.add_image(values, name="movie", scale=(1, 3, 0.5, 0.5), translate=(0, 7, 0, 0), units=("s", "mm", "mm", "mm"))
    assert widget.questions.time.isVisible()
    widget.start.click()
    widget.wait()
    assert widget.status.words == WHICH_TIME
    assert told() == []
    widget.questions.time.setValue(1)
    widget.questions.show_time.click()
    assert [layer.name for layer in viewer.layers] == ["movie", "movie [1]"]
    taken = viewer.layers[1]
    np.testing.assert_array_equal(taken.data, values[1])
    np.testing.assert_allclose(taken.data_to_world((1, 2, 4)), (10, 1, 2))
    assert widget.chosen_image is taken
    assert not viewer.layers[0].visible
    widget.start.click()
    widget.wait()
    assert engine.session.image.spacing == (3, 0.5, 0.5)


def test_one_time_point_is_no_series(tmp_path):
    path = files.save_image(tmp_path / "a.nii", Image(np.zeros((1, 4, 5, 6), np.uint8)))
    assert files.time_points(path) == 1
    with pytest.raises(OSError, match="does not exist"):
        files.time_points(tmp_path / "b.nii")
