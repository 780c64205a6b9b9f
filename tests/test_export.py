"""Labels object by object, and label maps that belong to another grid."""

from __future__ import annotations

import tracemalloc

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile

from napari_apprentice.files import WRITABLE, object_paths, read, read_labels, save_image, write, write_objects
from napari_apprentice.geometry import affine_from_spacing, reverse_axes, swap_lps_ras
from napari_apprentice.types import Image, LabelsError, ReadError, WriteError

AFFINE = np.array([[4.7, 0.12, -0.05, -31], [-1.1, 0.65, 0.16, 12], [0.9, -0.2, 0.38, 7], [0, 0, 0, 1.0]])
AFFINE[:3, :3] = np.linalg.qr(AFFINE[:3, :3])[0] * (5.0, 0.7, 0.4)  # turned, not sheared
PLACED = [".nii", ".nii.gz", ".mha", ".nrrd"]


def scan(affine=AFFINE, units="mm", path=None):
    return Image(np.random.default_rng(0).integers(0, 255, (1, 3, 5, 7)).astype(np.uint8), affine, units, "scan", path)


@pytest.fixture
def labels():
    made = np.zeros((3, 5, 7), np.uint32)
    made[0, 1:3, 2:5], made[1:, 3:, :4], made[2, 0, 0] = 2, 11, 70_000
    return made


# ------------------------------------------------------------------------------------------------------------------ one file an object


@pytest.mark.parametrize("extension", [extension for extension in WRITABLE if extension != ".png"])
def test_objects_come_back_one_by_one_and_make_the_label_map_again(tmp_path, labels, extension):
    paths = write_objects(tmp_path / f"scan_labels{extension}", labels, like=scan())
    assert paths == object_paths(tmp_path / f"scan_labels{extension}", [2, 11, 70_000])
    assert [path.name for path in paths] == [f"scan_labels_{number}{extension}" for number in ("00002", "00011", "70000")]
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in paths}
    again = sum(np.asarray(read_labels(path, like=scan()), np.uint32) * label for path, label in zip(paths, (2, 11, 70_000), strict=True))
    np.testing.assert_array_equal(again, labels)


@pytest.mark.parametrize("extension", PLACED)
def test_other_programs_see_every_object_where_the_image_lies(tmp_path, labels, extension):
    for path, label in zip(write_objects(tmp_path / f"a{extension}", labels, like=scan()), (2, 11, 70_000), strict=True):
        opened = sitk.ReadImage(str(path))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(opened), labels == label)
        lps = reverse_axes(swap_lps_ras(AFFINE))
        for voxel in ((0, 0, 0), (6, 0, 2), (3, 4, 1)):
            np.testing.assert_allclose(opened.TransformIndexToPhysicalPoint(voxel), (lps @ [*voxel, 1])[:3], atol=1e-4)
        if ".nii" in extension:
            np.testing.assert_array_equal(np.asarray(nibabel.load(path).dataobj).T, labels == label)
            np.testing.assert_allclose(nibabel.load(path).affine, reverse_axes(AFFINE), atol=1e-5)


@pytest.mark.parametrize("spacing_mm", [(5.0, 0.7, 0.4), (5e-5, 8e-6, 8e-6)])
def test_itk_sees_the_spacing_in_the_slices_of_an_ome_tiff(tmp_path, labels, spacing_mm):
    image = scan(affine_from_spacing(spacing_mm))
    opened = sitk.ReadImage(str(write(tmp_path / "a.ome.tif", labels, like=image)))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(opened), labels)
    np.testing.assert_allclose(opened.GetSpacing()[:2], spacing_mm[:0:-1], rtol=1e-6)
    assert read(tmp_path / "a.ome.tif").spacing == pytest.approx(spacing_mm)


def test_an_ome_tiff_of_pixels_states_no_length(tmp_path, labels):
    with tifffile.TiffFile(write(tmp_path / "a.ome.tif", labels, like=scan(None, "pixel"))) as file:
        assert file.pages.first.tags.valueof("ResolutionUnit") == 1
    assert sitk.ReadImage(str(tmp_path / "a.ome.tif")).GetSpacing() == (1.0, 1.0, 1.0)
    assert read(tmp_path / "a.ome.tif").units == "pixel"


def test_many_objects_take_no_more_memory_than_few(tmp_path):
    image = Image(np.zeros((1, 16, 128, 128), np.uint8))
    peaks = []
    for count in (2, 16):
        labels = np.arange(16 * 128 * 128).reshape(16, 128, 128) % count + 1
        tracemalloc.start()
        write_objects(tmp_path / "a.nii", labels, like=image)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_no_objects_make_no_files(tmp_path):
    assert write_objects(tmp_path / "a.nii", np.zeros((3, 5, 7), int), like=scan()) == ()
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_object_by_object(tmp_path, labels):
    with pytest.raises(LabelsError, match="shape"):
        write_objects(tmp_path / "a.nii", labels[:2], like=scan())
    with pytest.raises(LabelsError, match="negative"):
        write_objects(tmp_path / "a.nii", -labels.astype(int), like=scan())
    with pytest.raises(WriteError, match="extension"):
        write_objects(tmp_path / "a.xyz", labels, like=scan())


@pytest.mark.parametrize("name", ["cell_00011.nii", "link.nii"])
def test_no_object_takes_the_place_of_the_image(tmp_path, labels, name):
    save_image(tmp_path / "cell_00011.nii", scan())
    (tmp_path / "link.nii").symlink_to(tmp_path / "cell_00011.nii")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(WriteError, match="is the image itself; expected another file"):
        write_objects(tmp_path / "cell.nii", labels, like=read(tmp_path / name))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


# ------------------------------------------------------------------------------------------------------------------ another grid


def moved(by_voxels):
    affine = AFFINE.copy()
    affine[:3, 3] += affine[:3, :3] @ by_voxels
    return affine


@pytest.mark.parametrize("extension", PLACED)
def test_labels_of_another_grid_are_refused_in_one_sentence(tmp_path, labels, extension):
    image = read(save_image(tmp_path / "scan.nii.gz", scan()))
    path = tmp_path / f"a{extension}"
    np.testing.assert_array_equal(read_labels(write(path, labels, like=image), like=image), labels)
    for affine, words in [
        (AFFINE @ np.diag([1, 1, 1.5, 1]), "a spacing of 5 × 0.7 × 0.6 mm; expected 5 × 0.7 × 0.4 mm, that of 'scan'"),
        (moved((0, 0.5, 0)), "up to 0.5 voxels away from 'scan'"),
        (np.diag([-1, 1, 1, 1]) @ AFFINE, "voxels away from 'scan'"),
    ]:
        with pytest.raises(ReadError) as error:
            read_labels(write(path, labels, like=scan(affine)), like=image)
        assert words in str(error.value)
        assert path.name in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(ReadError, match=r"has shape \(2, 5, 7\); expected \(3, 5, 7\), that of 'scan'"):
        read_labels(write(path, labels[:2], like=Image(np.zeros((1, 2, 5, 7)), AFFINE, "mm")), like=image)


def test_what_a_format_does_not_say_is_not_held_against_it(tmp_path, labels):
    turned = read(save_image(tmp_path / "scan.nii.gz", scan()))
    np.testing.assert_array_equal(read_labels(write(tmp_path / "a.tif", labels, like=turned), like=turned), labels)
    plain = read(save_image(tmp_path / "scan.tif", scan(affine_from_spacing((5.0, 0.7, 0.4)))))
    elsewhere = scan(affine_from_spacing((5.0, 0.7, 0.4), (100.0, 0.0, 0.0)))
    np.testing.assert_array_equal(read_labels(write(tmp_path / "a.nii", labels, like=elsewhere), like=plain), labels)
    with pytest.raises(ReadError, match=r"a spacing of 5 × 0\.7 × 0\.8 mm"):
        read_labels(write(tmp_path / "b.tif", labels, like=scan(affine_from_spacing((5.0, 0.7, 0.8)))), like=turned)
    pixels = scan(None, "pixel")
    np.testing.assert_array_equal(read_labels(write(tmp_path / "c.tif", labels, like=pixels), like=turned), labels)


@pytest.mark.parametrize("extension", [".png", ".nii", ".mha"])
def test_labels_of_a_2d_image(tmp_path, labels, extension):
    image = Image(np.zeros((1, 5, 7), np.uint8), affine_from_spacing((0.7, 0.4)), "mm", "photo")
    np.testing.assert_array_equal(read_labels(write(tmp_path / f"a{extension}", labels[1], like=image), like=image), labels[1])
    with pytest.raises(ReadError, match="spacing"):
        read_labels(tmp_path / f"a{extension}", like=Image(image.data, affine_from_spacing((0.7, 0.5)), "mm"))
