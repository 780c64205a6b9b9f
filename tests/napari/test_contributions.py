from __future__ import annotations

from importlib import resources

import nibabel
import numpy as np
import pytest
import tifffile
import yaml
from napari.components import ViewerModel
from napari.layers import Labels
from npe2 import PluginManifest

from napari_apprentice import files
from napari_apprentice._napari.contributions import em_sample, fundus_sample, get_reader, image_layer, mri_sample, write_labels
from napari_apprentice._napari.placement import METADATA_KEY, SERIES_KEY, image_of
from napari_apprentice.types import Image, WriteError


@pytest.fixture(scope="module")
def manifest() -> dict:
    return yaml.safe_load((resources.files("napari_apprentice") / "napari.yaml").read_text())


def test_the_manifest_is_valid_and_all_it_names_exists(manifest):
    PluginManifest.from_distribution("napari-apprentice").validate_imports()
    titles = [command["id"] for command in manifest["contributions"]["commands"]]
    assert len(titles) == len(set(titles))
    menus = manifest["contributions"]["menus"]
    assert set(menus) == {"napari/layers/annotate", "napari/layers/segment", "napari/layers/measure"}


def test_the_manifest_claims_what_the_files_module_reads_and_writes(manifest):
    readers, writers = (manifest["contributions"][kind] for kind in ("readers", "writers"))
    assert sorted(pattern.removeprefix("*") for reader in readers for pattern in reader["filename_patterns"]) == sorted(files.READABLE)
    assert sorted(extension for writer in writers for extension in writer["filename_extensions"]) == sorted(files.WRITABLE)
    assert all(writer["layer_types"] == ["labels"] for writer in writers)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "a.nrrd"])
def test_a_volume_is_read_with_its_place_and_nothing_is_lost(tmp_path, volume, name):
    path = files.save_image(tmp_path / name, volume)
    ((data, arguments, kind),) = get_reader(str(path))(str(path))
    assert kind == "image"
    np.testing.assert_array_equal(data, volume.data[0])
    layer = ViewerModel().add_image(data, **arguments)
    np.testing.assert_allclose(layer.data_to_world((2, 3, 4)), (volume.affine @ [2, 3, 4, 1])[:3], atol=1e-4)
    carried = layer.metadata[METADATA_KEY]
    assert (carried.path, carried.units, carried.source is None) == (path, "mm", False)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.ome.tif"])
def test_colours_are_read_as_colours(tmp_path, photograph, name):
    path = files.save_image(tmp_path / name, photograph)
    ((data, arguments, _),) = get_reader(str(path))(str(path))
    layer = ViewerModel().add_image(data, **arguments)
    assert layer.rgb
    np.testing.assert_array_equal(image_of(layer).data, photograph.data)


def test_colours_of_16_bits_are_shown_in_the_range_that_napari_draws():
    colours = np.random.default_rng(0).integers(0, 4000, (3, 20, 30)).astype(np.uint16)
    data, arguments, _ = image_layer(Image(colours))
    assert (data.min(), data.max()) == (0.0, 1.0)
    assert arguments["metadata"][METADATA_KEY].data.dtype == np.uint16


def test_a_few_bright_voxels_do_not_leave_the_rest_in_the_dark():
    values = np.random.default_rng(0).normal(100, 10, (1, 200, 200)).astype(np.float32)
    values[0, 5, 5] = 1e6
    assert image_layer(Image(values))[1]["contrast_limits"][1] < 200
    assert image_layer(Image(np.ones((1, 5, 5))))[1]["contrast_limits"] is None
    assert image_layer(Image(np.full((1, 5, 5), np.nan)))[1]["contrast_limits"] is None


def test_label_maps_are_read_as_labels(tmp_path, volume):
    labels = np.zeros(volume.shape, dtype=np.uint16)
    labels[2, 3, 4] = 300
    path = files.write(tmp_path / "scan_labels.nii.gz", labels, like=volume)
    ((data, arguments, kind),) = get_reader(str(path))(str(path))
    assert kind == "labels"
    layer = ViewerModel().add_labels(data, **arguments)
    np.testing.assert_array_equal(layer.data, labels)
    np.testing.assert_allclose(layer.data_to_world((2, 3, 4)), (volume.affine @ [2, 3, 4, 1])[:3], atol=1e-4)


def test_an_image_that_is_only_called_labels_is_read_as_an_image(tmp_path, volume):
    path = files.save_image(tmp_path / "my_labels.nii.gz", volume)
    assert get_reader(str(path))(str(path))[0][2] == "image"


def test_colours_with_holes_are_shown_where_there_are_any():
    colours = np.random.default_rng(0).uniform(50, 300, (3, 6, 7)).astype(np.float32)
    colours[:, 2, 3] = np.nan
    shown = image_layer(Image(colours))[0]
    assert (np.nanmin(shown), np.nanmax(shown)) == (0, 1)
    np.testing.assert_array_equal(np.isnan(shown).any(axis=-1), np.isnan(colours).any(axis=0))


def test_of_a_series_the_first_time_point_is_opened_and_that_is_said(tmp_path, told):
    values = np.random.default_rng(0).normal(size=(5, 6, 7, 3)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "series.nii.gz")
    ((data, arguments, _),) = get_reader(str(tmp_path / "series.nii.gz"))("")
    np.testing.assert_array_equal(data, values[..., 0].T)
    assert arguments["metadata"][SERIES_KEY] == (3, 0)
    (sentence,) = told()
    assert sentence == "series.nii.gz is a series of 3 time points; the first one was opened. The Apprentice widget opens others."


def test_what_cannot_be_used_is_not_claimed_and_the_reason_is_told(tmp_path, told):
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 1, 3), np.float32), np.eye(4)), tmp_path / "vectors.nii")
    tifffile.imwrite(tmp_path / "seven.tif", np.zeros((7, 20, 30), np.uint8), imagej=True, metadata={"axes": "CYX"})
    (tmp_path / "half.nii").write_bytes((tmp_path / "vectors.nii").read_bytes()[:300])
    (tmp_path / "empty.png").touch()
    names = ["vectors.nii", "seven.tif", "half.nii", "empty.png"]
    assert [get_reader(str(tmp_path / name)) for name in names] == [None] * 4
    assert all(name in sentence for name, sentence in zip(names, told(), strict=True))


def test_several_files_at_once_are_left_to_napari(tmp_path):
    assert get_reader([str(tmp_path / "a.tif"), str(tmp_path / "b.tif")]) is None


def test_a_labels_layer_that_belongs_to_an_image_is_written_with_its_true_place(tmp_path, volume):
    oblique = np.array(volume.affine)
    oblique[1:3, 1:3] = 0.5 * np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    image = Image(volume.data, oblique, "mm")
    labels = np.ones(volume.shape, np.uint8)
    layer = Labels(labels, metadata={METADATA_KEY: image})
    data, attributes, _ = layer.as_layer_data_tuple()
    write_labels(str(tmp_path / "out.nii.gz"), data, attributes)
    np.testing.assert_allclose(files.read(tmp_path / "out.nii.gz").affine, oblique, atol=1e-5)


def test_a_labels_layer_drawn_from_nothing_is_written_where_it_stands(tmp_path):
    layer = Labels(np.arange(24, dtype=np.uint8).reshape(2, 3, 4), scale=(5, 1, 1), translate=(10, 0, 0), units=("mm",) * 3)
    data, attributes, _ = layer.as_layer_data_tuple()
    assert write_labels(str(tmp_path / "out.mha"), data, attributes) == [str(tmp_path / "out.mha")]
    back = files.read(tmp_path / "out.mha")
    assert back.spacing == (5, 1, 1)
    assert back.affine[0, 3] == 10
    with pytest.raises(WriteError):
        write_labels(str(tmp_path / "nowhere" / "out.mha"), data, attributes)


def test_napari_chooses_these_writers_for_labels(make_napari_viewer, tmp_path, volume):
    viewer = make_napari_viewer()
    data, arguments, _ = image_layer(volume)
    viewer.add_image(data, **arguments)
    layer = viewer.add_labels(np.ones(volume.shape, np.uint8), scale=viewer.layers[0].scale, translate=viewer.layers[0].translate)
    layer.units = viewer.layers[0].units
    assert layer.save(str(tmp_path / "out.nii.gz"), plugin="napari-apprentice") == [str(tmp_path / "out.nii.gz")]
    np.testing.assert_allclose(files.read(tmp_path / "out.nii.gz").affine, volume.affine, atol=1e-5)


@pytest.mark.parametrize(
    ("sample", "shape", "units"),
    [(fundus_sample, (1411, 1411), "pixel"), (mri_sample, (24, 96, 128), "mm"), (em_sample, (12, 192, 192), "mm")],
)
def test_samples_can_be_opened_and_worked_on(sample, shape, units):
    ((data, arguments, kind),) = sample()
    layer = ViewerModel().add_image(data, **arguments)
    image = image_of(layer)
    assert (kind, image.shape, image.units, image.path) == ("image", shape, units, None)  # never saved into a package


def test_the_mri_sample_is_anisotropic_and_keeps_its_oblique_place():
    image = mri_sample()[0][1]["metadata"][METADATA_KEY]
    assert image.spacing[0] > image.spacing[1]
    assert np.abs(image.affine[0, 1]) > 0.1
