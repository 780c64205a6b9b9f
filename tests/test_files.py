"""Laws of reading and writing: what is written comes back, and lies where the image lies, for other programs, too."""

from __future__ import annotations

import dataclasses
import errno
import importlib
import importlib.util
import itertools
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import PIL.Image
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from napari_apprentice import blocks, files, lazy
from napari_apprentice.files import READABLE, WRITABLE, check_image, labels_path, read, read_labels, save_image, write
from napari_apprentice.geometry import affine_from_spacing, reverse_axes, swap_lps_ras
from napari_apprentice.types import Image, ImageError, LabelsError, ReadError, WriteError

VOLUME_FORMATS = tuple(extension for extension in WRITABLE if extension != ".png")
AFFINE_FORMATS = (".nii", ".nii.gz", ".mha", ".nrrd")
SPACING_FORMATS = (".tif", ".tiff", ".ome.tif", ".ome.tiff")
ORIENTATIONS = [(order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)]
RNG = np.random.default_rng(0)


def oriented(order: tuple[int, ...], signs: tuple[int, ...], spacing=(5.0, 0.7, 0.4), origin=(-31.0, 12.5, 7.25)) -> np.ndarray:
    """(4, 4) affine whose voxel axis i points along world axis order[i], forwards or backwards."""
    affine = np.zeros((4, 4))
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, axis] = sign * spacing[axis]
    affine[:3, 3], affine[3, 3] = origin, 1
    return affine


def oblique(degrees=(20.0, -35.0, 11.0), spacing=(5.0, 0.7, 0.4), origin=(-31.0, 12.5, 7.25)) -> np.ndarray:
    """(4, 4) affine with rotations about the three axes."""
    rotation = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        i, j = (k for k in range(3) if k != axis)
        turn = np.eye(3)
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        rotation = rotation @ turn
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = rotation * spacing, origin
    return affine


AFFINES = [pytest.param(oriented(*o), id=f"{''.join(map(str, o[0]))}{''.join('+-'[s < 0] for s in o[1])}") for o in ORIENTATIONS]
AFFINES += [pytest.param(oblique(), id="oblique"), pytest.param(oblique() @ np.diag([1, -1, 1, 1]), id="oblique-left-handed")]


def phantom(shape=(3, 5, 7), affine=None, units="mm", dtype=np.uint8) -> Image:
    return Image((RNG.random((1, *shape)) * 200).astype(dtype), affine, units, "phantom")


def some_labels(shape, largest=9) -> np.ndarray:
    labels = RNG.integers(0, min(largest, 2**40) + 1, shape).astype(np.uint64)
    labels.flat[0] = largest
    return labels


def one_sentence(error: pytest.ExceptionInfo, *words: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 400, message
    for word in words:
        assert word in message, f"{word!r} is not in {message!r}"


# ---------------------------------------------------------------------------------------------------------------- labels come back


@pytest.mark.parametrize("largest", [0, 1, 255, 256, 65535, 65536, 2**32 - 1, 2**32])
@pytest.mark.parametrize("extension", VOLUME_FORMATS)
def test_labels_of_a_volume_come_back_exactly_in_the_smallest_type(tmp_path, extension, largest):
    labels = some_labels((3, 5, 7), largest)
    path = tmp_path / f"a{extension}"
    if ".ome.tif" in extension and largest >= 2**32:
        with pytest.raises(WriteError) as error:
            write(path, labels, like=phantom())
        one_sentence(error, "uint64", ".tif")
        return
    assert write(path, labels, like=phantom()) == path
    back = read_labels(path)
    assert back.dtype == np.min_scalar_type(largest)
    np.testing.assert_array_equal(back, labels)


@pytest.mark.parametrize("largest", [0, 1, 255, 256, 65535])
@pytest.mark.parametrize("extension", WRITABLE)
def test_labels_of_a_2d_image_come_back_exactly(tmp_path, extension, largest):
    labels = some_labels((5, 7), largest)
    back = read_labels(write(tmp_path / f"a{extension}", labels, like=phantom((5, 7))))
    assert back.dtype == np.min_scalar_type(largest)
    np.testing.assert_array_equal(back, labels)


@settings(max_examples=60, deadline=None)
@given(
    labels=hnp.arrays(
        st.sampled_from([np.uint8, np.int16, np.uint32, np.int64, np.float32, bool]),
        hnp.array_shapes(min_dims=2, max_dims=3, min_side=2, max_side=6),
        elements=st.integers(0, 1),
    ),
    factor=st.sampled_from([1, 3, 300]),
    extension=st.sampled_from(VOLUME_FORMATS),
)
def test_labels_of_any_type_and_shape_come_back(tmp_path_factory, labels, factor, extension):
    labels = labels if labels.dtype in (bool, np.uint8) else labels * labels.dtype.type(factor)
    path = tmp_path_factory.mktemp("any") / f"a{extension}"
    back = read_labels(write(path, labels, like=phantom(labels.shape)))
    np.testing.assert_array_equal(back, labels)
    assert back.dtype == np.min_scalar_type(int(labels.max()))


def test_labels_on_a_one_slice_volume(tmp_path):
    image = phantom((1, 5, 7), oblique())
    labels = some_labels((1, 5, 7))
    for extension in AFFINE_FORMATS:
        path = write(tmp_path / f"a{extension}", labels, like=image)
        np.testing.assert_array_equal(read_labels(path), labels)
        np.testing.assert_allclose(read(path).affine, image.affine, atol=1e-4)
    # TIFF cannot tell one slice of a volume from a 2D image.
    np.testing.assert_array_equal(read_labels(write(tmp_path / "a.tif", labels, like=image)), labels[0])


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("largest", [1, 300, 70_000])
@pytest.mark.parametrize("extension", VOLUME_FORMATS)
def test_thin_volumes_come_back_and_are_labels_of_their_image(tmp_path, monkeypatch, extension, largest, large):
    monkeypatch.setattr(lazy, "LARGE_BYTES", 0 if large else 2**30)
    for shape in itertools.product((1, 4), (1, 5), (1, 6)):
        image, labels = phantom(shape, np.diag([3.0, 0.5, 0.25, 1])), some_labels(shape, largest)
        path = write(tmp_path / f"a{extension}", labels, like=image)
        np.testing.assert_array_equal(np.asarray(read_labels(path, like=image)[...]), labels, err_msg=str(shape))
        if shape[0] > 1 or extension not in SPACING_FORMATS:
            assert read_labels(path).shape == shape
        np.testing.assert_allclose(read(path).spacing, image.spacing[-read(path).ndim :], rtol=1e-5)


@pytest.mark.parametrize("extension", VOLUME_FORMATS)
def test_thin_volumes_in_colours_come_back(tmp_path, extension):
    for shape, dtype in itertools.product(((4, 5, 1), (4, 1, 6), (4, 1, 1)), (np.uint8, np.uint16)):
        image = Image((RNG.random((3, *shape)) * 200).astype(dtype))
        if extension in (".nii", ".nii.gz") and dtype != np.uint8:
            continue
        np.testing.assert_array_equal(read(save_image(tmp_path / f"a{extension}", image)).data, image.data)


def test_a_picture_is_a_label_map_of_one_slice_only_where_it_lies_on_its_grid(tmp_path):
    affine, labels = np.diag([3.0, 0.5, 0.25, 1]), some_labels((5, 7))
    image, flat = phantom((1, 5, 7), affine), phantom((5, 7), affine[1:, 1:])
    for extension in (".png", ".tif"):
        path = write(tmp_path / f"a{extension}", labels, like=flat)
        np.testing.assert_array_equal(read_labels(path, like=image), labels[None])
        for other, words in (
            (phantom((1, 5, 7), np.diag([3.0, 0.5, 0.5, 1])), "spacing"),
            (phantom((1, 7, 5), affine), "has shape"),
            (phantom((5, 7, 1)), "has shape"),
        ):
            with pytest.raises(ReadError) as error:
                read_labels(path, like=other)
            one_sentence(error, words)
    with pytest.raises(ReadError, match="has shape"):  # such a file says how many axes it has
        read_labels(write(tmp_path / "a.nii", labels, like=flat), like=image)


@pytest.mark.parametrize("shape", [(3, 5, 7), (4, 5, 7), (2, 5, 3), (2, 3, 4), (3, 3)])
def test_slices_are_never_taken_for_colours(tmp_path, shape):
    extensions = WRITABLE if len(shape) == 2 else VOLUME_FORMATS
    for extension, dtype in itertools.product(extensions, (np.uint8, np.uint16)):
        image = phantom(shape, dtype=dtype)
        back = read(save_image(tmp_path / f"a{extension}", image))
        np.testing.assert_array_equal(back.data, image.data)


# --------------------------------------------------------------------------------------------------------------- geometry comes back


@pytest.mark.parametrize("extension", AFFINE_FORMATS)
@pytest.mark.parametrize("affine", AFFINES)
def test_the_affine_comes_back_in_every_orientation(tmp_path, extension, affine):
    image = phantom(affine=affine)
    path = write(tmp_path / f"a{extension}", some_labels(image.shape), like=image)
    back = read(path)
    np.testing.assert_allclose(back.affine, affine, rtol=1e-5, atol=1e-5)
    assert back.units == "mm"
    assert (back.name, back.path) == ("a", path)


@pytest.mark.parametrize("affine", AFFINES)
def test_nibabel_sees_the_same_world(tmp_path, affine):
    image = phantom(affine=affine)
    labels = some_labels(image.shape)
    loaded = nibabel.load(write(tmp_path / "a.nii.gz", labels, like=image))
    np.testing.assert_array_equal(np.asarray(loaded.dataobj), labels.T)
    z, y, x = 2, 4, 1
    s, a, r = (affine @ [z, y, x, 1])[:3]
    for seen in (loaded.affine, loaded.get_sform(), loaded.get_qform()):
        np.testing.assert_allclose(seen @ [x, y, z, 1], [r, a, s, 1], atol=1e-4)


@pytest.mark.parametrize("extension", [".mha", ".nrrd"])
@pytest.mark.parametrize("affine", AFFINES)
def test_itk_sees_the_same_world_in_its_own_format_and_in_nifti(tmp_path, extension, affine):
    """ITK's NIfTI reader is an oracle that shares no code with ours: our LPS conversion must agree with its own."""
    image = phantom(affine=affine)
    labels = some_labels(image.shape)
    ours = sitk.ReadImage(str(write(tmp_path / f"a{extension}", labels, like=image)))
    nifti = sitk.ReadImage(str(write(tmp_path / "a.nii.gz", labels, like=image)))
    np.testing.assert_allclose(ours.GetSpacing(), nifti.GetSpacing(), rtol=1e-5)
    np.testing.assert_allclose(ours.GetOrigin(), nifti.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(ours.GetDirection(), nifti.GetDirection(), atol=1e-5)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(ours), sitk.GetArrayFromImage(nifti))
    left, posterior, superior = ours.TransformIndexToPhysicalPoint((1, 4, 2))
    np.testing.assert_allclose((affine @ [2, 4, 1, 1])[:3], [superior, -posterior, -left], atol=1e-4)


@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
@pytest.mark.parametrize("codes", [(1, 1), (0, 2), (1, 0), (4, 3), (0, 0)])
@pytest.mark.parametrize("affine", AFFINES[::7] + AFFINES[-2:])
def test_nifti_labels_get_the_image_header_field_for_field(tmp_path, extension, codes, affine):
    header = nibabel.Nifti1Header()
    header.set_data_shape((7, 5, 3))
    header.set_data_dtype(np.int16)
    header.set_qform(reverse_axes(affine), codes[0])
    # A qform that differs from the sform, as registration leaves it, must survive.
    header.set_sform(reverse_axes(affine) @ np.diag([1, 1, 1.25, 1]), codes[1])
    header.set_xyzt_units("mm", "sec")
    header["cal_max"] = 1000
    values = RNG.integers(-1000, 1000, (7, 5, 3)).astype(np.int16)
    nibabel.Nifti1Image(values, None, header).to_filename(tmp_path / f"scan{extension}")
    image = read(tmp_path / f"scan{extension}")
    before = nibabel.load(tmp_path / f"scan{extension}").header
    path = write(labels_path(image), image.data[0] > 0, like=image)
    after = nibabel.load(path)
    fields = ["qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"]
    for field in [*fields, "srow_x", "srow_y", "srow_z", "pixdim", "xyzt_units", "dim"]:
        np.testing.assert_array_equal(after.header[field], before[field], err_msg=field)
    assert after.get_data_dtype() == np.uint8
    assert after.header["cal_max"] == 0
    np.testing.assert_array_equal(np.asarray(after.dataobj), values > 0)
    np.testing.assert_array_equal(read(path).affine, image.affine)


@pytest.mark.parametrize("extension", [".mha", ".nrrd"])
@pytest.mark.parametrize("n", [2, 3])
def test_itk_labels_get_the_image_frame_exactly(tmp_path, extension, n):
    written = sitk.GetImageFromArray(RNG.integers(0, 99, (3, 5, 7)[-n:]).astype(np.int16))
    written.SetSpacing((0.1, 1 / 3, 2.7)[:n])
    written.SetOrigin((-1 / 7, 20.1, 9.9)[:n])
    angle = 0.3
    turn = [np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)]
    written.SetDirection(turn if n == 2 else [*turn[:2], 0, *turn[2:], 0, 0, 0, 1])
    sitk.WriteImage(written, str(tmp_path / f"a{extension}"))
    image = read(tmp_path / f"a{extension}")
    assert image.units == "mm"
    assert image.spacing == pytest.approx((0.1, 1 / 3, 2.7)[:n][::-1])
    before = sitk.ReadImage(str(image.path))
    after = sitk.ReadImage(str(write(labels_path(image), image.data[0] > 50, like=image)))
    for ask in ("GetSpacing", "GetOrigin", "GetDirection", "GetSize"):
        np.testing.assert_allclose(getattr(after, ask)(), getattr(before, ask)(), rtol=1e-14, atol=1e-14)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(after), sitk.GetArrayFromImage(before) > 50)


@pytest.mark.parametrize("source", AFFINE_FORMATS)
@pytest.mark.parametrize("target", AFFINE_FORMATS)
def test_geometry_is_converted_between_formats(tmp_path, source, target):
    image = read(save_image(tmp_path / f"image{source}", phantom(affine=oblique())))
    path = write(tmp_path / f"labels{target}", some_labels(image.shape), like=image)
    np.testing.assert_allclose(read(path).affine, oblique(), atol=1e-5)


@pytest.mark.parametrize("target", SPACING_FORMATS)
def test_tiff_keeps_the_spacing_and_only_that(tmp_path, target):
    image = phantom(affine=oblique(spacing=(3.5, 0.7, 0.3)))
    back = read(write(tmp_path / f"labels{target}", some_labels(image.shape), like=image))
    np.testing.assert_allclose(back.affine, affine_from_spacing((3.5, 0.7, 0.3)), rtol=1e-7)
    assert back.units == "mm"


@pytest.mark.parametrize("extension", SPACING_FORMATS)
@pytest.mark.parametrize("largest", [9, 70_000])
@pytest.mark.parametrize("spacing_mm", [(40e-6, 8e-6, 8e-6), (0.001, 0.00025, 0.00025), (5.0, 1 / 3, 1.7)])
def test_tiff_holds_spacings_from_nanometres_to_millimetres(tmp_path, extension, largest, spacing_mm):
    image = phantom(affine=affine_from_spacing(spacing_mm))
    back = read(write(tmp_path / f"a{extension}", some_labels(image.shape, largest), like=image))
    np.testing.assert_allclose(back.spacing, spacing_mm, rtol=1e-6)
    assert back.units == "mm"
    again = read(write(labels_path(back), some_labels(image.shape, largest), like=back))
    np.testing.assert_allclose(again.affine, back.affine, rtol=1e-6)


@pytest.mark.parametrize("extension", SPACING_FORMATS)
@pytest.mark.parametrize("shape", [(5, 7), (3, 5, 7)])
def test_tiff_of_pixels_stays_in_pixels(tmp_path, extension, shape):
    spacing = (4.0, 1.0, 1.0)[-len(shape) :]
    image = phantom(shape, affine_from_spacing(spacing), "pixel")
    for labels in (some_labels(shape), some_labels(shape, 2**20)):
        back = read(write(tmp_path / f"a{extension}", labels, like=image))
        assert back.units == "pixel"
        assert back.spacing == pytest.approx(spacing)


@pytest.mark.parametrize("extension", [".nii.gz", ".nrrd", ".tif", ".ome.tif"])
def test_an_image_whose_affine_was_changed_is_not_written_with_the_old_header(tmp_path, extension):
    image = read(save_image(tmp_path / f"a{extension}", phantom(affine=affine_from_spacing((3, 2, 1)))))
    corrected = dataclasses.replace(image, affine=affine_from_spacing((6, 2, 1)))
    assert read(write(tmp_path / f"b{extension}", some_labels(image.shape), like=corrected)).spacing == pytest.approx((6, 2, 1))


@pytest.mark.parametrize("extension", AFFINE_FORMATS)
def test_a_shear_is_kept(tmp_path, extension):
    affine = np.eye(4)
    affine[0, 1] = 0.4
    image = phantom(affine=affine)
    path = write(tmp_path / f"a{extension}", some_labels(image.shape), like=image)
    np.testing.assert_allclose(read(path).affine, affine, atol=1e-6)
    if extension == ".nii":  # the quaternion cannot say it, so it must not claim to
        assert nibabel.load(path).header["qform_code"] == 0


# ------------------------------------------------------------------------------------------------------------------ images come back

HOLDS = {
    ".nii": "u1 u2 u4 u8 i1 i2 i4 i8 f4 f8",
    ".nii.gz": "u1 u2 u4 u8 i1 i2 i4 i8 f4 f8",
    ".tif": "u1 u2 u4 u8 i1 i2 i4 i8 f2 f4 f8",
    ".tiff": "u1 u2 u4 u8 i1 i2 i4 i8 f2 f4 f8",
    ".ome.tif": "u1 u2 u4 i1 i2 i4 f4 f8",
    ".ome.tiff": "u1 u2 u4 i1 i2 i4 f4 f8",
    ".mha": "u1 u2 u4 u8 i1 i2 i4 i8 f4 f8",
    ".nrrd": "u1 u2 u4 u8 i1 i2 i4 i8 f4 f8",
    ".ome.zarr": "u1 u2 u4 u8 i1 i2 i4 i8 f2 f4 f8",
    ".zarr": "u1 u2 u4 u8 i1 i2 i4 i8 f2 f4 f8",
    ".png": "u1 u2",
}


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"])
@pytest.mark.parametrize("extension", WRITABLE)
def test_grey_images_of_every_type_come_back_or_are_refused(tmp_path, extension, dtype):
    shape = (5, 7) if extension == ".png" else (3, 5, 7)
    values = (RNG.random((1, *shape)) * 120).astype(dtype)
    path = tmp_path / f"a{extension}"
    if dtype not in HOLDS[extension].split():
        with pytest.raises(WriteError) as error:
            save_image(path, Image(values))
        one_sentence(error, "'a", np.dtype(dtype).name)
        assert list(tmp_path.iterdir()) == []
    else:
        back = read(save_image(path, Image(values)))
        assert back.data.dtype == np.dtype(dtype)
        assert back.data.flags.c_contiguous
        np.testing.assert_array_equal(back.data, values)


@pytest.mark.parametrize("extension", WRITABLE)
@pytest.mark.parametrize("shape", [(5, 7), (3, 5, 7), (5, 4)])
def test_rgb_images_come_back(tmp_path, extension, shape):
    image = Image(RNG.integers(0, 256, (3, *shape)).astype(np.uint8))
    if extension == ".png" and len(shape) == 3:
        pytest.skip("PNG holds no volumes")
    back = read(save_image(tmp_path / f"a{extension}", image))
    np.testing.assert_array_equal(back.data, image.data)


def test_bool_images_are_saved_as_0_and_1(tmp_path):
    mask = RNG.random((1, 5, 7)) > 0.5
    for extension in WRITABLE:
        np.testing.assert_array_equal(read_labels(save_image(tmp_path / f"a{extension}", Image(mask))), mask[0])


# ------------------------------------------------------------------------------------------------------- files of other programs: NIfTI


def test_nifti_scaling_is_applied_to_images_and_a_trivial_one_keeps_the_type(tmp_path):
    raw = np.arange(24, dtype=np.int16).reshape(4, 3, 2)
    image = nibabel.Nifti1Image(raw, np.eye(4))
    image.to_filename(tmp_path / "plain.nii")
    assert read(tmp_path / "plain.nii").data.dtype == np.int16
    image.header.set_slope_inter(2, -1024)
    image.to_filename(tmp_path / "ct.nii")
    data = read(tmp_path / "ct.nii").data
    assert data.dtype == np.float32
    stored = np.frombuffer((tmp_path / "ct.nii").read_bytes()[352:], np.int16).reshape(2, 3, 4)
    np.testing.assert_array_equal(data[0], stored * 2.0 - 1024)


@pytest.mark.parametrize("slab_bytes", [1, 300, 10**9])
@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 9), (7, 5, 9, 3), (7, 5, 1, 3, 1)])
@pytest.mark.parametrize("slope", [1.0, 0.3])
def test_nifti_read_slab_by_slab_is_what_nibabel_reads_at_once(tmp_path, monkeypatch, shape, slope, slab_bytes):
    image = nibabel.Nifti1Image(RNG.integers(-999, 999, shape).astype(np.int16), None)
    image.header.set_slope_inter(slope, -4.0 if slope != 1 else 0.0)
    image.to_filename(tmp_path / "a.nii.gz")
    monkeypatch.setattr(importlib.import_module("napari_apprentice.files._nifti"), "_SLAB_BYTES", slab_bytes)
    whole = np.asanyarray(nibabel.load(tmp_path / "a.nii.gz").dataobj)
    volume = whole.reshape(*shape[:3], -1)[..., 1] if len(shape) > 3 else whole
    read_back = read(tmp_path / "a.nii.gz", time=1 if len(shape) > 3 else None).data[0]
    np.testing.assert_array_equal(read_back, volume.T.astype(np.float32 if slope != 1 else np.int16), strict=True)


def test_nifti_labels_are_what_the_scaling_makes_of_them(tmp_path):
    raw = np.array([[[0, 1], [2, 3]]], dtype=np.uint8)
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    for slope, expected in ((2.0, raw * 2), (1.0, raw)):
        image = nibabel.Nifti1Image(raw, np.eye(4), header)
        image.header.set_slope_inter(slope, 0)
        image.to_filename(tmp_path / "a.nii.gz")
        np.testing.assert_array_equal(read_labels(tmp_path / "a.nii.gz"), expected.T)
    image = nibabel.Nifti1Image(raw, np.eye(4), header)
    image.header.set_slope_inter(0.3, 0)
    image.to_filename(tmp_path / "a.nii.gz")
    with pytest.raises(ReadError) as error:
        read_labels(tmp_path / "a.nii.gz")
    one_sentence(error, "'a.nii.gz'", "whole numbers")


@pytest.mark.parametrize(("unit", "mm"), [("unknown", 1), ("mm", 1), ("micron", 1e-3), ("meter", 1e3)])
def test_nifti_units_become_mm_and_the_labels_keep_the_unit(tmp_path, unit, mm):
    image = nibabel.Nifti1Image(np.zeros((4, 3, 2), np.uint8), np.diag([250.0, 250, 1000, 1]))
    image.header.set_xyzt_units(unit)
    image.to_filename(tmp_path / "a.nii.gz")
    ours = read(tmp_path / "a.nii.gz")
    assert ours.spacing == pytest.approx((1000 * mm, 250 * mm, 250 * mm))
    assert ours.units == "mm"
    path = write(labels_path(ours), np.zeros(ours.shape, int), like=ours)
    assert nibabel.load(path).header.get_xyzt_units()[0] == unit
    np.testing.assert_array_equal(nibabel.load(path).affine, image.affine)
    assert read(write(tmp_path / "b.nrrd", np.zeros(ours.shape, int), like=ours)).spacing == pytest.approx(ours.spacing)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_big_endian_and_nifti2_files(tmp_path, kind):
    header = kind.header_class(endianness=">")
    header.set_data_dtype(np.int16)
    values = RNG.integers(-99, 99, (4, 3, 2)).astype(np.int16)
    kind(values, np.eye(4), header).to_filename(tmp_path / "a.nii")
    image = read(tmp_path / "a.nii")
    assert image.data.dtype == np.dtype("=i2")
    np.testing.assert_array_equal(image.data[0], values.T)
    path = write(labels_path(image), image.data[0] > 0, like=image)
    assert type(nibabel.load(path)) is kind
    np.testing.assert_array_equal(read_labels(path), image.data[0] > 0)


def test_a_series_asks_which_time_point(tmp_path):
    values = RNG.integers(0, 99, (4, 3, 2, 5)).astype(np.int16)
    nibabel.Nifti1Image(values, oblique()).to_filename(tmp_path / "fmri.nii.gz")
    with pytest.raises(ReadError) as error:
        read(tmp_path / "fmri.nii.gz")
    one_sentence(error, "'fmri.nii.gz'", "5 time points", "time= from 0 to 4")
    for wrong in (5, -1):
        with pytest.raises(ReadError) as error:
            read(tmp_path / "fmri.nii.gz", time=wrong)
        one_sentence(error, f"time={wrong}", "0 to 4")
    image = read(tmp_path / "fmri.nii.gz", time=3)
    np.testing.assert_array_equal(image.data[0], values[..., 3].T)
    path = write(labels_path(image), image.data[0] > 50, like=image)
    assert nibabel.load(path).shape == (4, 3, 2)
    np.testing.assert_array_equal(read(path).affine, image.affine)


def test_a_single_image_has_the_time_point_zero_only(tmp_path):
    path = save_image(tmp_path / "a.nii", Image(np.zeros((1, 4, 3, 2), np.uint8)))
    assert read(path, time=0).shape == (4, 3, 2)
    with pytest.raises(ReadError, match=r"time=1 was asked for; expected 0$"):
        read(path, time=1)


def test_axes_of_length_one_are_dropped(tmp_path):
    values = RNG.integers(0, 99, (4, 3, 2)).astype(np.int16)
    for shape in ((4, 3, 2, 1), (4, 3, 2, 1, 1)):
        nibabel.Nifti1Image(values.reshape(shape), np.eye(4)).to_filename(tmp_path / "a.nii")
        np.testing.assert_array_equal(read(tmp_path / "a.nii").data[0], values.T)
    with pytest.raises(ReadError) as error:
        read(tmp_path / "a.nii", time=1)
    one_sentence(error, "1 time point", "time=1")


def test_nifti_of_two_axes_is_2d_and_of_one_slice_is_3d(tmp_path):
    values = RNG.integers(0, 99, (4, 3)).astype(np.int16)
    nibabel.Nifti1Image(values, np.diag([2.0, 3, 1, 1])).to_filename(tmp_path / "flat.nii")
    nibabel.Nifti1Image(values[..., None], oblique()).to_filename(tmp_path / "slice.nii")
    flat, one = read(tmp_path / "flat.nii"), read(tmp_path / "slice.nii")
    assert (flat.shape, flat.spacing, one.shape) == ((3, 4), (3.0, 2.0), (1, 3, 4))
    np.testing.assert_allclose(one.affine, reverse_axes(oblique()), atol=1e-6)
    for image in (flat, one):
        before, after = nibabel.load(image.path), nibabel.load(write(labels_path(image), image.data[0] > 50, like=image))
        assert after.shape == before.shape
        np.testing.assert_array_equal(after.affine, before.affine)


def test_a_2d_nifti_across_another_axis_keeps_its_place_in_its_labels(tmp_path):
    sagittal = oriented((1, 2, 0), (1, 1, 1))
    nibabel.Nifti1Image(np.ones((4, 3), np.uint8), sagittal).to_filename(tmp_path / "a.nii")
    image = read(tmp_path / "a.nii")
    assert image.spacing == pytest.approx((0.7, 5.0))
    np.testing.assert_allclose(nibabel.load(write(labels_path(image), np.ones((3, 4)), like=image)).affine, sagittal, atol=1e-6)


@pytest.mark.parametrize("channels", ["RGB", "RGBA"])
def test_rgb_nifti(tmp_path, channels):
    values = RNG.integers(0, 256, (4, 3, 2, len(channels))).astype(np.uint8)
    structured = values.view([(channel, "u1") for channel in channels])[..., 0]
    nibabel.Nifti1Image(structured, np.eye(4)).to_filename(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read(tmp_path / "a.nii.gz").data, values[..., :3].T)
    with pytest.raises(ReadError) as error:
        read_labels(tmp_path / "a.nii.gz")
    one_sentence(error, "3 channels", "label map")


# -------------------------------------------------------------------------------------------------------- files of other programs: TIFF


@pytest.mark.parametrize(("unit", "mm"), [("um", 1e-3), ("micron", 1e-3), ("\\u00B5m", 1e-3), ("nm", 1e-6), ("mm", 1), ("inch", 25.4)])
def test_imagej_stacks(tmp_path, unit, mm):
    values = RNG.integers(0, 999, (4, 5, 7)).astype(np.uint16)
    metadata = {"axes": "ZYX", "spacing": 40.0, "unit": unit}
    tifffile.imwrite(tmp_path / "a.tif", values, imagej=True, resolution=(1 / 8, 1 / 16), metadata=metadata)
    image = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(image.data[0], values)
    assert image.units == "mm"
    assert image.spacing == pytest.approx((40 * mm, 16 * mm, 8 * mm))
    with tifffile.TiffFile(write(labels_path(image), values > 500, like=image)) as file:
        assert file.imagej_metadata["spacing"] == 40.0
        assert file.imagej_metadata["slices"] == 4
        assert file.pages.first.tags["XResolution"].value == (1, 8)
        assert file.pages.first.tags["YResolution"].value == (1, 16)


@pytest.mark.parametrize(
    ("unit", "zunit", "mm"), [("um", "nm", (0.0005, 0.0002)), ("nm", "micron", (0.5, 2e-7)), ("um", "um", (0.5, 2e-4))]
)
def test_imagej_states_the_distance_of_slices_in_a_unit_of_its_own(tmp_path, unit, zunit, mm):
    spacing = mm[0] * {"nm": 1e6, "micron": 1e3, "um": 1e3}[zunit]
    metadata = {"axes": "ZYX", "spacing": spacing, "unit": unit, "zunit": zunit}
    values = RNG.integers(0, 255, (4, 5, 7)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", values, imagej=True, resolution=(5, 5), metadata=metadata)
    image = read(tmp_path / "a.tif")
    assert (image.units, image.spacing) == ("mm", pytest.approx((mm[0], mm[1], mm[1])))
    assert read(write(tmp_path / "b.tif", values, like=image)).spacing == pytest.approx(image.spacing)


def test_imagej_without_calibration_is_in_pixels(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.ones((4, 5, 7), np.uint8), imagej=True, metadata={"axes": "ZYX"})
    image = read(tmp_path / "a.tif")
    assert (image.units, image.spacing, image.shape) == ("pixel", (1.0, 1.0, 1.0), (4, 5, 7))


@pytest.mark.parametrize(("unit", "mm"), [("nm", 1e-6), ("µm", 1e-3), ("mm", 1.0), ("cm", 10.0), ("Å", 1e-7)])
def test_ome_tiff(tmp_path, unit, mm):
    values = RNG.integers(0, 999, (4, 5, 7)).astype(np.uint16)
    metadata = {"axes": "ZYX"} | {f"PhysicalSize{a}": s for a, s in zip("ZYX", (40.0, 16.0, 8.0), strict=True)}
    metadata |= {f"PhysicalSize{a}Unit": unit for a in "XYZ"}
    tifffile.imwrite(tmp_path / "a.ome.tif", values, metadata=metadata)
    image = read(tmp_path / "a.ome.tif")
    assert image.name == "a"
    assert image.units == "mm"
    assert image.spacing == pytest.approx((40 * mm, 16 * mm, 8 * mm))
    np.testing.assert_array_equal(image.data[0], values)
    path = write(labels_path(image), values > 500, like=image)
    assert path.name == "a_labels.ome.tif"
    with tifffile.TiffFile(path) as file:
        pixels = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
    assert [pixels[f"PhysicalSize{a}"] for a in "ZYX"] == [40.0, 16.0, 8.0]
    assert {pixels[f"PhysicalSize{a}Unit"] for a in "ZYX"} == {unit}
    assert pixels["Type"] == "uint8"


def series_of_files(folder: Path, compression: str | None) -> tuple[list[Path], np.ndarray]:
    """An OME-TIFF of three slices, each in a file of its own; the first file is the shortest one."""
    values = RNG.integers(0, 255, (3, 40, 30)).astype(np.uint8)
    values[0] = 7
    paths, ids = [folder / f"s{z}.ome.tif" for z in range(3)], [f"urn:uuid:0000000{z}-0000-0000-0000-000000000000" for z in range(3)]
    slices = "".join(
        f'<TiffData FirstZ="{z}" FirstC="0" FirstT="0" IFD="0" PlaneCount="1"><UUID FileName="{paths[z].name}">{ids[z]}</UUID></TiffData>'
        for z in range(3)
    )
    for z in range(3):
        text = (
            f'<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{ids[z]}"><Image ID="Image:0">'
            '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="30" SizeY="40" SizeZ="3" SizeC="1" SizeT="1" '
            f'PhysicalSizeX="0.5" PhysicalSizeY="0.5" PhysicalSizeZ="2"><Channel ID="Channel:0:0"/>{slices}</Pixels></Image></OME>'
        )
        tifffile.imwrite(paths[z], values[z], description=text, metadata=None, compression="zlib" if z == 0 else compression)
    return paths, values


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_an_ome_tiff_in_several_files_is_whole_where_each_of_them_is(tmp_path, monkeypatch, compression, large):
    monkeypatch.setattr(lazy, "LARGE_BYTES", 0 if large else 2**30)
    paths, values = series_of_files(tmp_path, compression)
    for path in paths:
        check_image(path)
        image = read(path)
        assert image.spacing == pytest.approx((2e-3, 5e-4, 5e-4))
        np.testing.assert_array_equal(image.data[0], values)
    content = paths[1].read_bytes()
    for length in {0, *np.linspace(8, len(content) - 1, 40).astype(int).tolist()}:
        paths[1].write_bytes(content[:length])
        sentence = image_or_sentence(paths[0])
        assert "damaged or truncated" in str(sentence), length
        assert check_or_sentence(paths[0]) == sentence
    paths[1].unlink()
    assert "damaged or truncated" in str(image_or_sentence(paths[0]))


def test_ome_sizes_in_different_or_missing_units(tmp_path):
    sizes = {"PhysicalSizeX": 500.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 1e-3, "PhysicalSizeYUnit": "mm", "PhysicalSizeZ": 2.0}
    tifffile.imwrite(tmp_path / "a.ome.tif", np.ones((4, 5, 7), np.uint8), metadata={"axes": "ZYX", **sizes})
    assert read(tmp_path / "a.ome.tif").spacing == pytest.approx((2e-3, 1e-3, 5e-4))


def test_resolution_tags(tmp_path):
    values = RNG.integers(0, 99, (5, 7)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "cm.tif", values, resolution=(20, 40), resolutionunit="CENTIMETER", metadata=None)
    tifffile.imwrite(tmp_path / "inch.tif", values, resolution=(254, 254), resolutionunit="INCH", metadata=None)
    tifffile.imwrite(tmp_path / "print.tif", values, resolution=(300, 300), resolutionunit="INCH", metadata=None)
    for name, expected, units in (("cm", (0.25, 0.5), "mm"), ("inch", (0.1, 0.1), "mm"), ("print", (1, 1), "pixel")):
        image = read(tmp_path / f"{name}.tif")
        assert (image.units, image.spacing) == (units, pytest.approx(expected))
        labels = write(labels_path(image), values > 50, like=image)
        assert (read(labels).units, read(labels).spacing) == (units, pytest.approx(expected))
        before, after = PIL.Image.open(image.path), PIL.Image.open(labels)  # a reader that knows TIFF's own tags only
        assert [after.tag_v2[tag] for tag in (282, 283, 296)] == [before.tag_v2[tag] for tag in (282, 283, 296)]


@pytest.mark.parametrize(
    ("shape", "options", "expected"),
    [
        ((4, 5, 7), {"photometric": "minisblack", "metadata": None}, (1, 4, 5, 7)),
        ((5, 7), {"metadata": None}, (1, 5, 7)),
        ((5, 7, 3), {"photometric": "rgb"}, (3, 5, 7)),
        ((5, 7, 4), {"photometric": "rgb", "extrasamples": ["unassalpha"]}, (3, 5, 7)),
        ((5, 7, 2), {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": ["assocalpha"]}, (1, 5, 7)),
        ((3, 5, 7), {"photometric": "rgb", "planarconfig": "separate"}, (3, 5, 7)),
        ((4, 5, 7, 3), {"photometric": "rgb", "metadata": None}, (3, 4, 5, 7)),
        ((4, 3, 5, 7), {"imagej": True, "metadata": {"axes": "ZCYX"}}, (3, 4, 5, 7)),
        ((1, 4, 1, 5, 7), {"imagej": True, "metadata": {"axes": "TZCYX"}}, (1, 4, 5, 7)),
        ((4, 5, 7), {"photometric": "minisblack", "bigtiff": True, "metadata": None}, (1, 4, 5, 7)),
        ((5, 7), {"byteorder": ">", "metadata": None}, (1, 5, 7)),
        ((5, 7), {"tile": (16, 16), "metadata": None}, (1, 5, 7)),
    ],
)
def test_layouts_of_tiff(tmp_path, shape, options, expected):
    values = RNG.integers(0, 255, shape).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", values, **options)
    data = read(tmp_path / "a.tif").data
    assert data.shape == expected
    # The same voxels, wherever the channels lie on disk.
    if len(shape) == len(expected) and expected[0] == 3:
        order = {(5, 7, 3): (2, 0, 1), (5, 7, 4): (2, 0, 1), (3, 5, 7): (0, 1, 2), (4, 5, 7, 3): (3, 0, 1, 2), (4, 3, 5, 7): (1, 0, 2, 3)}
        np.testing.assert_array_equal(data, np.transpose(values, order[shape])[:3])
    else:
        np.testing.assert_array_equal(data, (values[..., 0] if shape == (5, 7, 2) else values).reshape(expected))


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(
    ("channels", "options"),
    [
        (2, {"photometric": "minisblack", "extrasamples": ["unspecified"]}),
        (4, {"photometric": "minisblack", "extrasamples": 3 * ["unspecified"]}),
        (4, {"photometric": "rgb", "extrasamples": ["unspecified"]}),
        (4, {"photometric": "separated"}),
    ],
)
def test_channels_that_are_not_alpha_are_never_dropped(tmp_path, monkeypatch, channels, options, large):
    monkeypatch.setattr(lazy, "LARGE_BYTES", 0 if large else lazy.LARGE_BYTES)
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((5, 7, channels), np.uint8), planarconfig="contig", **options)
    with pytest.raises(ReadError) as error:
        read(tmp_path / "a.tif")
    one_sentence(error, f"{channels} channels", "RGB")


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_deflate", "group4", "jpeg"])
def test_compressed_tiffs_of_other_programs(tmp_path, monkeypatch, compression, large):
    monkeypatch.setattr(lazy, "LARGE_BYTES", 0 if large else lazy.LARGE_BYTES)
    values = np.add.outer(np.arange(64), 2 * np.arange(48)).astype(np.uint8)
    stored = values > 90 if compression == "group4" else np.dstack([values, values, values])
    PIL.Image.fromarray(stored).save(tmp_path / "a.tif", compression=compression, **({"quality": 100} if compression == "jpeg" else {}))
    data = np.asarray(read(tmp_path / "a.tif").data[:])
    expected = stored[None] if stored.ndim == 2 else np.moveaxis(stored, -1, 0)
    np.testing.assert_allclose(data.astype(int), expected.astype(int), atol=2 if compression == "jpeg" else 0)


@pytest.mark.parametrize("large", [False, True])
def test_a_compression_that_nothing_here_knows_is_no_damage(tmp_path, monkeypatch, large):
    monkeypatch.setattr(lazy, "LARGE_BYTES", 0 if large else lazy.LARGE_BYTES)
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((5, 7), np.uint8), compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as file:
        file.pages[0].tags[259].overwrite(12345)
    with pytest.raises(ReadError) as error:
        read(tmp_path / "a.tif")
    one_sentence(error, "cannot be read here (12345)", "such as Deflate")


def test_tiff_series_and_what_is_neither_grey_nor_rgb(tmp_path):
    values = RNG.integers(0, 255, (6, 5, 7)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "t.tif", values, imagej=True, metadata={"axes": "TYX"})
    with pytest.raises(ReadError) as error:
        read(tmp_path / "t.tif")
    one_sentence(error, "'t.tif'", "6 time points", "time=")
    np.testing.assert_array_equal(read(tmp_path / "t.tif", time=4).data, values[None, 4])
    tifffile.imwrite(tmp_path / "c.tif", values, imagej=True, metadata={"axes": "CYX"})
    with pytest.raises(ReadError) as error:
        read(tmp_path / "c.tif")
    one_sentence(error, "'c.tif'", "6 channels", "RGB")
    tifffile.imwrite(tmp_path / "5d.tif", np.zeros((2, 3, 4, 5, 7), np.uint8), photometric="minisblack")
    with pytest.raises(ReadError) as error:
        read(tmp_path / "5d.tif")
    one_sentence(error, "'5d.tif'", "(2, 3, 4, 5, 7)", "ZYX")


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"metadata": None}, {"contiguous": True}, None], ids=str)
@pytest.mark.parametrize("large", [False, True])
def test_pages_that_were_written_one_by_one_are_one_volume(tmp_path, monkeypatch, options, large):
    values, path = RNG.integers(0, 255, (6, 40, 50)).astype(np.uint8), tmp_path / "loop.tif"
    if options is None:
        for page in values:
            tifffile.imwrite(path, page, append=path.exists())
    else:
        with tifffile.TiffWriter(path) as file:
            for page in values:
                file.write(page, photometric="minisblack", **options)
    if large:
        monkeypatch.setattr(lazy, "LARGE_BYTES", 100)
    np.testing.assert_array_equal(np.asarray(read(path).data), values[None])


def test_images_that_would_be_left_out_are_not_left_out_in_silence(tmp_path):
    values = RNG.integers(0, 255, (6, 40, 50)).astype(np.uint8)
    pages = [PIL.Image.fromarray(page.astype(np.uint16) if at == 3 else page) for at, page in enumerate(values)]
    pages[0].save(tmp_path / "mixed.tif", save_all=True, append_images=pages[1:])
    with tifffile.TiffWriter(tmp_path / "two.ome.tif", ome=True) as file:
        for half in (values[:3], values[3:]):
            file.write(half, metadata={"axes": "ZYX"})
    with tifffile.TiffWriter(tmp_path / "stacks.tif") as file:
        for half in (values[:3], values[3:]):
            file.write(half, photometric="minisblack")
    two = "(3, 40, 50), (3, 40, 50)"
    for name, shapes in (("mixed.tif", "(5, 40, 50), (40, 50)"), ("two.ome.tif", two), ("stacks.tif", two)):
        with pytest.raises(ReadError) as error:
            read(tmp_path / name)
        one_sentence(error, f"'{name}'", "holds 2 images", shapes, "expected one image")


def test_a_small_picture_of_the_image_beside_it_is_passed_over(tmp_path):
    values = RNG.integers(0, 255, (40, 50)).astype(np.uint8)
    with tifffile.TiffWriter(tmp_path / "thumb.tif") as file:
        file.write(values, photometric="minisblack")
        file.write(values[::4, ::4], photometric="minisblack")
    np.testing.assert_array_equal(read(tmp_path / "thumb.tif").data, values[None])


# ---------------------------------------------------------------------------------------------- files of other programs: PNG, JPEG, ITK


def test_pictures_of_every_mode(tmp_path):
    grey = RNG.integers(0, 256, (5, 7)).astype(np.uint8)
    colour = RNG.integers(0, 256, (5, 7, 4)).astype(np.uint8)
    cases = {"grey": (grey, grey[None]), "alpha": (colour, colour[..., :3]), "rgb": (colour[..., :3], colour[..., :3])}
    cases |= {"la": (np.dstack([grey, grey]), grey[None]), "deep": (grey.astype(np.uint16) * 257, grey[None].astype(np.uint16) * 257)}
    for name, (stored, expected) in cases.items():
        PIL.Image.fromarray(stored).save(tmp_path / f"{name}.png")
        data = read(tmp_path / f"{name}.png").data
        np.testing.assert_array_equal(data, expected if expected.shape[0] == 1 else np.moveaxis(expected, -1, 0))
    PIL.Image.fromarray(grey > 99).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "bits.png"), grey > 99)
    for mode, channels in (("L", 1), ("RGB", 3), ("CMYK", 3)):
        PIL.Image.fromarray(colour[..., :3]).convert(mode).save(tmp_path / "a.jpg")
        assert read(tmp_path / "a.jpg").data.shape == (channels, 5, 7)


@pytest.mark.parametrize("strip", [1, 15, 2**22])
def test_a_picture_is_read_some_rows_at_a_time_and_is_the_same(tmp_path, monkeypatch, strip):
    monkeypatch.setattr(importlib.import_module("napari_apprentice.files._picture"), "_STRIP_PIXELS", strip)
    whole = PIL.Image.fromarray(RNG.integers(0, 256, (5, 7, 3)).astype(np.uint8))
    usual, while_read = PIL.Image.core.get_block_size(), []
    real = PIL.ImageFile.ImageFile.load_prepare
    monkeypatch.setattr(
        PIL.ImageFile.ImageFile, "load_prepare", lambda self: while_read.append(PIL.Image.core.get_block_size()) or real(self)
    )
    for mode, extension in itertools.product(("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"), (".png", ".jpg")):
        picture = whole.convert("L").convert(mode) if mode == "I;16" else whole.convert(mode)
        try:
            picture.save(tmp_path / f"a{extension}")
        except OSError:
            continue  # one of the two formats does not know it
        data = read(tmp_path / f"a{extension}").data
        assert min(while_read) >= 2**26 > usual, "glibc fills smaller pieces with zeros, and nobody else has Python's lock meanwhile"
        expected = PIL.Image.open(tmp_path / f"a{extension}")
        expected = np.asarray(expected.convert("RGB") if expected.mode in ("P", "CMYK") else expected).astype(np.float64)
        channels = np.atleast_3d(expected)[..., : 1 if mode in ("1", "L", "LA", "I;16") else 3]
        np.testing.assert_array_equal(data, np.moveaxis(channels, -1, 0))
        while_read.clear()
    assert PIL.Image.core.get_block_size() == usual


@pytest.mark.parametrize("extension", WRITABLE)
@pytest.mark.parametrize("shape", [(5, 7), (3, 5, 7)])
def test_the_colours_of_a_pixel_lie_beside_each_other(tmp_path, extension, shape):
    """A window that is to draw other ones copies them first, for seconds, and stands still."""
    if extension == ".png" and len(shape) == 3:
        pytest.skip("PNG holds no volumes")
    colours = RNG.integers(0, 256, (3, *shape)).astype(np.uint8)
    back = read(save_image(tmp_path / f"a{extension}", Image(colours))).data
    np.testing.assert_array_equal(back, colours)
    assert np.moveaxis(back, 0, -1).flags.c_contiguous


def test_16_bit_colour_png_keeps_its_16_bits(tmp_path):
    values = RNG.integers(0, 65536, (5, 7, 3)).astype(np.uint16)
    sitk.WriteImage(sitk.GetImageFromArray(values, isVector=True), str(tmp_path / "a.png"))
    image = read(tmp_path / "a.png")
    assert image.data.dtype == np.uint16
    np.testing.assert_array_equal(image.data, np.moveaxis(values, -1, 0))


def test_16_bit_grey_png_with_alpha_keeps_its_16_bits(tmp_path):
    values = RNG.integers(0, 65536, (5, 7, 2)).astype(np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 7, 5, 16, 4, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    coded = (struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(coded))
    np.testing.assert_array_equal(read(tmp_path / "a.png").data, values[None, ..., 0])
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png"), values[..., 0])


def test_a_picture_before_a_larger_one_is_not_taken_for_the_image(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for side in (8, 16):
            file.write(np.zeros((side, side), np.uint8), metadata=None)
    for look in (read, check_image):
        with pytest.raises(ReadError) as error:
            look(tmp_path / "a.tif")
        one_sentence(error, "holds 2 images, the first of which is not the largest")


def test_palette_tiff_is_colour_as_an_image_and_indices_as_labels(tmp_path, monkeypatch):
    indices, table = RNG.integers(0, 256, (5, 6, 7), dtype=np.uint8), RNG.integers(256, 2**16, (3, 256), dtype=np.uint16)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, indices, photometric="palette", colormap=table, metadata=None)
    np.testing.assert_array_equal(read(path).data, (table >> 8)[:, indices])
    np.testing.assert_array_equal(read_labels(path), indices)
    picture = PIL.Image.fromarray(RNG.integers(0, 256, (9, 8, 3), dtype=np.uint8)).quantize(16)
    for name in ("b.png", "b.tif"):
        picture.save(tmp_path / name)
    np.testing.assert_array_equal(read(tmp_path / "b.tif").data, read(tmp_path / "b.png").data)
    monkeypatch.setattr(lazy, "LARGE_BYTES", 10)
    for look in (read, check_image):
        with pytest.raises(ReadError) as error:
            look(path)
        one_sentence(error, "table of colours")
    np.testing.assert_array_equal(read_labels(path), indices)


def test_palette_tiffs_of_other_kinds_are_read_or_refused(tmp_path):
    picture = PIL.Image.fromarray(RNG.integers(0, 2, (9, 8), dtype=np.uint8)).convert("P")
    picture.putpalette([200, 0, 0, 0, 100, 0])
    pages = [picture, picture.copy()]
    pages[1].putpalette([0, 0, 50, 60, 0, 0])
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ReadError) as error:
        read(tmp_path / "a.tif")
    one_sentence(error, "2 tables of colours")
    bits = np.asarray(picture, dtype=bool)
    tifffile.imwrite(tmp_path / "b.tif", bits, metadata=None, extratags=[(320, "H", 6, (51200, 0, 0, 25600, 0, 0), True)])
    with tifffile.TiffFile(tmp_path / "b.tif", mode="r+b") as file:  # which tifffile itself does not write
        file.pages.first.tags[262].overwrite(3)
    np.testing.assert_array_equal(read(tmp_path / "b.tif").data, np.moveaxis(np.array([[200, 0, 0], [0, 100, 0]])[bits.astype(int)], -1, 0))


def test_the_colours_that_imagej_shows_intensities_in_are_none_of_the_image(tmp_path):
    values, fire = RNG.integers(0, 256, (6, 7), dtype=np.uint8), RNG.integers(0, 2**16, (3, 256), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, imagej=True, photometric="palette", colormap=fire)
    np.testing.assert_array_equal(read(tmp_path / "a.tif").data, values[None])


def test_palette_png_is_colour_as_an_image_and_indices_as_labels(tmp_path):
    labels = RNG.integers(0, 4, (5, 7)).astype(np.uint8)
    picture = PIL.Image.fromarray(labels).convert("P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture.putdata(labels.ravel())
    for bits in (2, 8):
        picture.save(tmp_path / "a.png", bits=bits)
        assert read(tmp_path / "a.png").data.shape == (3, 5, 7)
        np.testing.assert_array_equal(read_labels(tmp_path / "a.png"), labels)


@pytest.mark.parametrize("bits", [2, 4])
def test_labels_in_grey_png_of_few_bits_are_the_stored_numbers(tmp_path, bits):
    import struct
    import zlib

    row = bytes([0b00011011, 0b11100100])  # 0 1 2 3 3 2 1 0 in 2 bits; 1 11 14 4 in 4 bits
    expected = [[0, 1, 2, 3, 3, 2, 1, 0]] if bits == 2 else [[1, 11, 14, 4]]

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", len(expected[0]), 1, bits, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(png)
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png"), expected)


def test_png_density_is_a_spacing_unless_it_is_for_print(tmp_path):
    values = np.arange(35, dtype=np.uint8).reshape(5, 7)
    for dots, spacing, units in ((2540, 0.01, "mm"), (72, 1, "pixel"), (90, 1, "pixel"), (300, 1, "pixel")):
        PIL.Image.fromarray(values).save(tmp_path / "a.png", dpi=(dots, dots))
        image = read(tmp_path / "a.png")
        assert (image.units, image.spacing) == (units, pytest.approx((spacing, spacing), rel=1e-4))
        path = write(labels_path(image), values, like=image)
        assert PIL.Image.open(path).info["dpi"] == PIL.Image.open(image.path).info["dpi"]
        np.testing.assert_array_equal(read(path).affine, image.affine)
    PIL.Image.fromarray(values).save(tmp_path / "a.jpg", dpi=(2540, 2540))
    assert read(tmp_path / "a.jpg").units == "pixel"


def test_what_is_of_another_type_is_refused_in_one_sentence(tmp_path):
    path = save_image(tmp_path / "scan.nii", phantom())
    with pytest.raises(ImageError, match=r"scan.nii' arrived as the image of the labels; expected one, as `read` makes it"):
        write(tmp_path / "labels.nii", np.ones((3, 5, 7), int), like=str(path))
    assert not (tmp_path / "labels.nii").exists()
    with pytest.raises(ReadError, match=r"has 1 time point, but time=a was asked for; expected 0"):
        read(path, time="a")


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are Unicode here")
@pytest.mark.parametrize("extension", WRITABLE)
def test_a_name_that_is_not_utf_8_is_read_and_written_or_refused_in_one_sentence(tmp_path, extension):
    image = Image(np.arange(12, dtype=np.uint8).reshape(1, 3, 4))
    path = tmp_path / os.fsdecode(b"\xff" + extension.encode())
    if extension in (".mha", ".nrrd"):  # ITK would end the whole program
        with pytest.raises(WriteError, match="is named in another encoding than UTF-8, which ITK needs; expected"):
            save_image(path, image)
        save_image(tmp_path / f"x{extension}", image).rename(path)
        with pytest.raises(ReadError, match="another encoding"):
            read(path)
    else:
        np.testing.assert_array_equal(read(save_image(path, image)).data, image.data)


def test_a_turned_photograph_has_labels_that_turn_with_it(tmp_path):
    from PIL import ImageOps

    values = np.arange(35, dtype=np.uint8).reshape(5, 7)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(values).save(tmp_path / "a.jpg", exif=exif, quality=95)
    image = read(tmp_path / "a.jpg")
    assert image.shape == (5, 7)
    path = write(labels_path(image), values, like=image)
    np.testing.assert_array_equal(read_labels(path), values)
    turned = np.asarray(ImageOps.exif_transpose(PIL.Image.open(path)))
    np.testing.assert_array_equal(turned, np.rot90(values, -1))
    assert ImageOps.exif_transpose(PIL.Image.open(image.path)).size[::-1] == turned.shape


def test_mhd_is_read_with_its_raw_file_and_its_labels_are_one_file(tmp_path):
    values = RNG.integers(0, 99, (3, 5, 7)).astype(np.int16)
    written = sitk.GetImageFromArray(values)
    written.SetSpacing((1.0, 2.0, 3.0))
    sitk.WriteImage(written, str(tmp_path / "a.mhd"))
    image = read(tmp_path / "a.mhd")
    np.testing.assert_array_equal(image.data[0], values)
    assert labels_path(image) == tmp_path / "a_labels.mha"
    assert sitk.ReadImage(str(write(labels_path(image), values > 50, like=image))).GetSpacing() == (1.0, 2.0, 3.0)
    (tmp_path / "a.raw").unlink()
    with pytest.raises(ReadError) as error:
        read(tmp_path / "a.mhd")
    one_sentence(error, "'a.mhd'")


@pytest.mark.parametrize("extension", [".mha", ".nrrd"])
def test_itk_series_and_colours(tmp_path, extension):
    values = RNG.integers(0, 99, (6, 3, 5, 7)).astype(np.uint8)
    series = sitk.GetImageFromArray(values, isVector=False)
    series.SetSpacing((1.0, 2.0, 3.0, 9.0))
    sitk.WriteImage(series, str(tmp_path / f"t{extension}"))
    with pytest.raises(ReadError) as error:
        read(tmp_path / f"t{extension}")
    one_sentence(error, "6 time points")
    image = read(tmp_path / f"t{extension}", time=5)
    np.testing.assert_array_equal(image.data[0], values[5])
    assert image.spacing == (3.0, 2.0, 1.0)
    for channels in (2, 3, 4):
        colours = RNG.integers(0, 99, (3, 5, 7, channels)).astype(np.uint8)
        sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), str(tmp_path / f"c{extension}"))
        if channels == 3:
            np.testing.assert_array_equal(read(tmp_path / f"c{extension}").data, np.moveaxis(colours, -1, 0))
        else:
            with pytest.raises(ReadError) as error:
                read(tmp_path / f"c{extension}")
            one_sentence(error, f"{channels} channels", "RGB")
    if extension == ".nrrd":
        vectors = (tmp_path / "c.nrrd").read_bytes()
        (tmp_path / "c.nrrd").write_bytes(vectors.replace(b"kinds: vector", b"kinds: RGBA-color"))
        np.testing.assert_array_equal(read(tmp_path / "c.nrrd").data, np.moveaxis(colours[..., :3], -1, 0))


def write_nrrd(path: Path, values: np.ndarray, kinds: str, vectors: str = "") -> Path:
    """A NRRD whose axes, fastest first, are of these kinds, and have these directions in space."""
    kind = {"u1": "uchar", "i2": "short", "u2": "ushort", "f4": "float"}[values.dtype.str[1:]]
    lines = ["NRRD0004", f"type: {kind}", f"dimension: {values.ndim}", f"sizes: {' '.join(map(str, values.shape[::-1]))}"]
    lines += ["space: left-posterior-superior", f"space directions: {vectors}", "space origin: (1,2,3)"] if vectors else []
    path.write_bytes("\n".join([*lines, f"kinds: {kinds}", "endian: little", "encoding: raw", "", ""]).encode() + values.tobytes())
    return path


@pytest.mark.parametrize("count", [2, 3, 4, 6])
@pytest.mark.parametrize("dtype", ["u1", "i2", "f4"])
def test_a_nrrd_whose_axis_is_a_list_is_a_series_and_has_no_colours(tmp_path, count, dtype):
    values, vectors = RNG.integers(0, 99, (count, 3, 5, 7)).astype(dtype), "(0.5,0,0) (0,0.5,0) (0,0,2)"
    first = write_nrrd(
        tmp_path / "a.nrrd", np.ascontiguousarray(np.moveaxis(values, 0, -1)), "list domain domain domain", f"none {vectors}"
    )
    last = write_nrrd(tmp_path / "b.nrrd", values, "domain domain domain list", f"{vectors} none")
    for path in (first, last):
        for look in (read, check_image):
            with pytest.raises(ReadError) as error:
                look(path)
            one_sentence(error, f"{count} time points")
        assert files.time_points(path) == count
        image = read(path, time=1)
        np.testing.assert_array_equal(image.data[0], values[1])
        assert image.spacing == (2.0, 0.5, 0.5)
        assert read_labels(write(tmp_path / "l.nrrd", values[1] > 50, like=image), like=image).shape == (3, 5, 7)


def test_the_time_of_a_nrrd_is_its_last_axis(tmp_path):
    values = RNG.integers(0, 99, (4, 3, 5, 7)).astype(np.uint8)
    np.testing.assert_array_equal(read(write_nrrd(tmp_path / "a.nrrd", values, "domain domain domain time"), time=2).data[0], values[2])
    np.testing.assert_array_equal(read(write_nrrd(tmp_path / "b.nrrd", values[0], "domain domain time"), time=2).data[0], values[0, 2])
    for look in (read, check_image):
        with pytest.raises(ReadError) as error:
            look(write_nrrd(tmp_path / "c.nrrd", values, "time domain domain domain"))
        one_sentence(error, "along axis 1 of 4; expected them along the last one")


def test_vectors_in_a_nrrd_are_no_colours(tmp_path):
    values = RNG.integers(0, 99, (5, 7, 3))
    colours = [("vector", "u1"), ("vector", "u2"), ("RGB-color", "u1"), ("RGB-color", "f4"), ("3-color", "i2")]
    for kind, dtype in colours:
        path = write_nrrd(tmp_path / "a.nrrd", values.astype(dtype), f"{kind} domain domain")
        check_image(path)
        np.testing.assert_array_equal(read(path).data, np.moveaxis(values, -1, 0))
    for kind, dtype in [("vector", "f4"), ("vector", "i2"), ("covariant-vector", "u1"), ("HSV-color", "u1"), ("3-normal", "f4")]:
        path = write_nrrd(tmp_path / "a.nrrd", values.astype(dtype), f"{kind} domain domain")
        for look in (read, check_image):
            with pytest.raises(ReadError) as error:
                look(path)
            one_sentence(error, f"3 components of the kind {kind.lower()}", "expected grey, or RGB")
    for dtype in (np.uint8, np.int16, np.float32):
        image = Image((RNG.random((3, 5, 7)) * 99).astype(dtype))
        np.testing.assert_array_equal(read(save_image(tmp_path / "b.nrrd", image)).data, image.data)


def test_a_nrrd_slice_that_lies_in_space_is_read_without_its_place(tmp_path):
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    path = write_nrrd(tmp_path / "a.nrrd", values, "domain domain", "(0.5,0,0) (0,0.7,0)")  # two axes in a space of three
    image = read(path)
    np.testing.assert_array_equal(image.data[0], values)
    assert (image.units, image.spacing) == ("pixel", (1.0, 1.0))


def test_nrrd_in_another_world_frame_is_the_same_image(tmp_path):
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    directions = {"left-posterior-superior": "(-1,0,0) (0,-2,0) (0,0,3)", "right-anterior-superior": "(1,0,0) (0,2,0) (0,0,3)"}
    for space, direction in directions.items():
        header = f"NRRD0005\ntype: uint8\ndimension: 3\nspace: {space}\nsizes: 4 3 2\nspace directions: {direction}\n"
        origin = "(-5,-6,7)" if space.startswith("left") else "(5,6,7)"
        header += f"kinds: domain domain domain\nencoding: raw\nspace origin: {origin}\n\n"
        (tmp_path / "a.nrrd").write_bytes(header.encode() + values.tobytes())
        np.testing.assert_array_equal(read(tmp_path / "a.nrrd").affine, affine_from_spacing((3, 2, 1), (7, 6, 5)))


# ------------------------------------------------------------------------------------------------------------------------ bad input


def test_what_is_no_file_and_named_like_none_gives_one_sentence(tmp_path):
    (tmp_path / "table.csv").touch()
    for path, words in ((tmp_path, "is a folder"), (tmp_path / "scan", "does not exist"), (tmp_path / "table.csv", "is not known")):
        for function in (read, read_labels):
            with pytest.raises(ReadError) as error:
                function(path)
            one_sentence(error, repr(path.name), words, "expected", "one of .nii.gz")


@pytest.mark.parametrize("extension", [extension for extension in READABLE if not extension.endswith(".zarr")])  # see test_large_volumes
def test_what_is_not_such_a_file_gives_one_sentence(tmp_path, extension):
    path = tmp_path / f"scan{extension}"
    cases: list[tuple[str, object]] = [("does not exist", None), ("is empty (0 bytes)", b""), ("does not begin as", b"patient,age\n" * 40)]
    for words, content in cases:
        if content is not None:
            path.write_bytes(content)
        for function in (read,) if extension in (".jpg", ".jpeg") else (read, read_labels):
            with pytest.raises(ReadError) as error:
                function(path)
            one_sentence(error, path.name, words, "expected")
    path.unlink()
    path.mkdir()
    with pytest.raises(ReadError) as error:
        read(path)
    one_sentence(error, path.name, "is a folder")


@pytest.mark.parametrize("name", ["notes.txt", "scan", "scan.gz", "nii", "scan.dcm"])
def test_an_unknown_extension_names_the_known_ones(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ReadError) as error:
        read(tmp_path / name)
    one_sentence(error, repr(name), ".nii.gz", ".png")
    with pytest.raises(WriteError) as error:
        write(tmp_path / name, np.zeros((5, 7), int), like=phantom((5, 7)))
    one_sentence(error, repr(name), ".nii.gz", ".png")


def test_upper_case_extensions_are_known(tmp_path):
    path = write(tmp_path / "SCAN.NII.GZ", np.ones((3, 5, 7), int), like=phantom())
    assert read(path).name == "SCAN"
    assert labels_path(read(path)).name == "SCAN_labels.NII.GZ"


def whole_file(folder: Path, kind: str) -> Path:
    """A healthy file of every kind, with values that do not compress to nothing."""
    noise = np.random.default_rng(1).integers(0, 255, (1, 4, 24, 24)).astype(np.uint8)
    path = folder / f"whole{kind.split()[-1]}"
    if kind == "deep .png":
        sitk.WriteImage(sitk.GetImageFromArray(np.moveaxis(noise[0, :3], 0, -1).astype(np.uint16) * 256, isVector=True), str(path))
    elif kind.endswith((".jpg", ".png")):
        PIL.Image.fromarray(noise[0, 0]).save(path)
    elif kind == "plain .tif":
        tifffile.imwrite(path, noise[0], photometric="minisblack", metadata=None)
    elif kind == "tiled .tif":
        tifffile.imwrite(path, noise[0], tile=(16, 16), photometric="minisblack", metadata=None)
    elif kind == "imagej .tif":
        tifffile.imwrite(path, noise[0], imagej=True, metadata={"axes": "ZYX"})
    elif kind == "plain .mha":
        sitk.WriteImage(sitk.GetImageFromArray(noise[0]), str(path), False)
    else:
        save_image(path, Image(noise))
    return path


KINDS = [
    ".nii",
    ".nii.gz",
    ".tif",
    "plain .tif",
    "tiled .tif",
    "imagej .tif",
    ".ome.tif",
    ".mha",
    "plain .mha",
    ".nrrd",
    ".png",
    "deep .png",
    ".jpg",
]


def check_or_sentence(path: Path) -> str:
    """What `check_image` says against a file; "" for nothing."""
    try:
        check_image(path)
    except ReadError as refusal:
        return str(refusal)
    return ""


def image_or_sentence(path: Path) -> Image | str:
    """What `read` makes of a damaged file; anything but an image or one sentence that names the file fails the test."""
    sentence = ""
    try:
        image = read(path)
        check_image(path)
        return image
    except ReadError as refusal:
        sentence = str(refusal)
    assert repr(path.name) in sentence
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_anywhere_is_refused_or_complete_never_half(tmp_path, kind):
    whole = whole_file(tmp_path, kind)
    content, expected = whole.read_bytes(), read(whole)
    path = tmp_path / f"cut{kind.split()[-1]}"
    refused = 0
    lengths = {*range(1, 12), *np.linspace(12, len(content) - 1, 60).astype(int).tolist(), len(content) - 1}
    for length in sorted(lengths):
        path.write_bytes(content[:length])
        back = image_or_sentence(path)
        if isinstance(back, str):
            refused += 1
            assert check_or_sentence(path) or kind in (".mha", ".nrrd", ".jpg")
        else:  # bytes after the last voxel may be missing
            np.testing.assert_array_equal(back.data, expected.data, err_msg=f"cut at {length} of {len(content)}")
            np.testing.assert_array_equal(back.affine, expected.affine)
    assert refused > 0.8 * len(lengths)


@pytest.mark.parametrize("kind", [*KINDS, ".ome.zarr"])
def test_an_image_is_checked_without_reading_its_voxels(tmp_path, monkeypatch, kind):
    path = whole_file(tmp_path, kind)
    monkeypatch.setattr(files._format(path, READABLE, ReadError).codec, "load", lambda *_, **__: pytest.fail("it read the voxels"))
    check_image(path)


@pytest.mark.parametrize("extension", [".nii", ".nii.gz", ".tif", ".mha", ".nrrd", ".zarr"])
def test_a_series_is_refused_without_reading_its_voxels(tmp_path, monkeypatch, extension):
    values, path = np.zeros((5, 4, 3, 2), np.uint8), tmp_path / f"t{extension}"
    if extension.startswith(".nii"):
        nibabel.Nifti1Image(values.T, np.eye(4)).to_filename(path)
    elif extension == ".tif":
        tifffile.imwrite(path, values, imagej=True, metadata={"axes": "TZYX"})
    elif extension == ".zarr":
        zarr.save_array(str(path), values)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(values, isVector=False), str(path))
    monkeypatch.setattr(files._format(path, READABLE, ReadError).codec, "load", lambda *_, **__: pytest.fail("it read the voxels"))
    with pytest.raises(ReadError) as error:
        check_image(path)
    one_sentence(error, "5 time points; expected one volume")


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bytes_never_give_anything_but_an_image_or_a_read_error(tmp_path, kind):
    content = whole_file(tmp_path, kind).read_bytes()
    rng = np.random.default_rng(2)
    path = tmp_path / f"bad{kind.split()[-1]}"
    for _ in range(40):
        damaged = bytearray(content)
        # Headers are where the danger lies: half of the hits go there.
        where = int(rng.integers(0, min(400, len(content)) if rng.random() < 0.5 else len(content)))
        damaged[where] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(bytes(damaged))
        assert image_or_sentence(path)


@pytest.mark.parametrize("kind", [".nii.gz", ".png"])
def test_a_checksum_is_believed(tmp_path, kind):
    whole = whole_file(tmp_path, kind)
    content, expected = whole.read_bytes(), read(whole)
    path = tmp_path / f"bad{kind}"
    refused = 0
    for where in np.linspace(40, len(content) - 1, 80).astype(int):
        damaged = bytearray(content)
        damaged[where] ^= 4
        path.write_bytes(bytes(damaged))
        back = image_or_sentence(path)
        if isinstance(back, str):
            refused += 1
        else:
            np.testing.assert_array_equal(back.data, expected.data)
    assert refused > 70


def test_five_axes_and_complex_values_are_refused(tmp_path):
    nibabel.Nifti1Image(np.zeros((4, 3, 2, 2, 2), np.uint8), np.eye(4)).to_filename(tmp_path / "a.nii.gz")
    with pytest.raises(ReadError) as error:
        read(tmp_path / "a.nii.gz")
    one_sentence(error, "5 axes", "(4, 3, 2, 2, 2)", "(x, y, z)")
    nibabel.Nifti1Image(np.zeros((4, 3, 2), np.complex64), np.eye(4)).to_filename(tmp_path / "a.nii.gz")
    with pytest.raises(ReadError) as error:
        read(tmp_path / "a.nii.gz")
    one_sentence(error, "complex64", "real numbers")


def test_labels_are_not_read_from_lossy_or_fractional_files(tmp_path):
    PIL.Image.fromarray(np.zeros((5, 7), np.uint8)).save(tmp_path / "a.tif", compression="jpeg")
    with pytest.raises(ReadError) as error:
        read_labels(tmp_path / "a.tif")
    one_sentence(error, "JPEG", "changes labels")
    PIL.Image.fromarray(np.zeros((5, 7), np.uint8)).save(tmp_path / "a.jpg")
    with pytest.raises(ReadError) as error:
        read_labels(tmp_path / "a.jpg")
    one_sentence(error, "JPEG")
    for value, words in ((0.5, "whole numbers"), (-1.0, "negative label -1"), (np.nan, "whole numbers")):
        save_image(tmp_path / "a.nii.gz", Image(np.full((1, 2, 3, 4), value, np.float32)))
        with pytest.raises(ReadError) as error:
            read_labels(tmp_path / "a.nii.gz")
        one_sentence(error, "'a.nii.gz'", words)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.zeros((3, 5, 8), int), "(3, 5, 8)"),
        (np.zeros((5, 7), int), "(3, 5, 7)"),
        (np.full((3, 5, 7), -2), "negative label -2"),
        (np.full((3, 5, 7), 0.5), "whole numbers"),
        (np.full((3, 5, 7), np.nan), "whole numbers"),
        (np.full((3, 5, 7), np.inf), "whole numbers"),
        (np.full((3, 5, 7), 1e300), "at most"),
        (np.full((3, 5, 7), 1j), "complex128"),
        (np.full((3, 5, 7), "a"), "whole numbers"),
    ],
)
def test_labels_that_cannot_be_labels(tmp_path, labels, words):
    with pytest.raises(LabelsError) as error:
        write(tmp_path / "a.nii.gz", labels, like=phantom())
    one_sentence(error, words, "expected")
    assert list(tmp_path.iterdir()) == []


def test_formats_that_cannot_hold_the_labels(tmp_path):
    flat = np.zeros((5, 7), int)
    cases = [("a.jpg", flat, ".png"), ("a.mhd", flat, ".mha"), ("a.png", flat + 65536, "65535")]
    for name, labels, words in cases:
        with pytest.raises(WriteError) as error:
            write(tmp_path / name, labels, like=phantom((5, 7)))
        one_sentence(error, name, words)
    with pytest.raises(WriteError) as error:
        write(tmp_path / "a.png", np.zeros((3, 5, 7), int), like=phantom())
    one_sentence(error, "a.png", "2D", "TIFF")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------------------ atomicity


@pytest.mark.parametrize("extension", [".nii.gz", ".tif", ".mha", ".nrrd", ".png"])
@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied"), "no permission"),
        (OSError(errno.EROFS, "Read-only file system"), "no permission"),
        (OSError(errno.EIO, "Input/output error"), "could not be written: Input/output error"),
        (RuntimeError("Exception thrown in\nITK ERROR: something broke"), "something broke"),
    ],
)
@pytest.mark.parametrize("stage", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_whole_and_nothing_else(tmp_path, monkeypatch, extension, failure, words, stage):
    image, old, new = phantom((5, 7)), np.ones((5, 7), int), np.full((5, 7), 2)
    path = write(tmp_path / f"a{extension}", old, like=image)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(files.os, stage, fail)
    with pytest.raises(WriteError) as error:
        write(path, new, like=image)
    one_sentence(error, path.name, words)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("failure", "disk", "words"),
    [
        (
            OSError(errno.ENOENT, "No such file or directory", "/there/.a.1234"),
            (0, 0, 0),
            "could not be written: No such file or directory (",
        ),
        (OSError(errno.EIO, "Input/output error"), (10**9, 10**9, 0), "could not be written: Input/output error ("),
        (RuntimeError("ITK ERROR: it broke"), (0, 0, 0), "could not be written: ITK ERROR: it broke ("),
        (RuntimeError("ITK ERROR: it broke"), (10**9, 10**9, 0), "the disk is full"),
    ],
)
def test_a_disk_counts_as_full_only_where_nothing_else_is_said(tmp_path, monkeypatch, failure, disk, words):
    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(files.os, "fsync", fail)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(**dict(zip(("total", "used", "free"), disk, strict=True))))
    with pytest.raises(WriteError) as error:
        write(tmp_path / "a.nii.gz", np.ones((5, 7), int), like=phantom((5, 7)))
    one_sentence(error, "a.nii.gz", words)


def test_an_interrupted_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.nii.gz", np.ones((3, 5, 7), int), like=phantom())
    assert list(tmp_path.iterdir()) == []


FILL = """
import resource, sys, numpy as np
from napari_apprentice.files import write
from napari_apprentice.types import Image, WriteError
failed = []
for path in sys.argv[1:]:
    shape = (400, 600) if path.endswith(".png") else (6, 200, 200)
    image = Image(np.zeros((1, *shape), np.uint8))
    write(path, np.ones(shape, int), like=image)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    try:
        write(path, np.random.default_rng(0).integers(0, 60_000, shape), like=image)
    except WriteError as error:
        assert "\\n" not in str(error) and "could not be written" in str(error), error
        failed.append(path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert failed == sys.argv[1:], failed
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_disk_that_takes_only_part_of_the_file_is_noticed_by_every_format(tmp_path):
    """The kernel itself refuses to let a file grow, which no library can overlook by luck."""
    paths = [tmp_path / f"a{extension}" for extension in WRITABLE]
    done = subprocess.run([sys.executable, "-c", FILL, *map(str, paths)], capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    for path in paths:
        assert read_labels(path).max() == 1


@pytest.mark.parametrize("extension", [".mha", ".nrrd"])
def test_what_itk_did_not_write_is_noticed(tmp_path, monkeypatch, extension):
    real = sitk.WriteImage

    def lose_the_end(image, name, **options):
        real(image, name, **options)
        os.truncate(name, os.path.getsize(name) - 20)

    monkeypatch.setattr(sitk, "WriteImage", lose_the_end)
    with pytest.raises(WriteError):
        write(tmp_path / f"a{extension}", some_labels((3, 5, 7)), like=phantom())
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(tmp_path, monkeypatch):
    labels = np.ones((3, 5, 7), int)
    with pytest.raises(WriteError) as error:
        write(tmp_path / "missing" / "a.nii.gz", labels, like=phantom())
    one_sentence(error, "a.nii.gz", "folder does not exist")
    (tmp_path / "folder.nii.gz").mkdir()
    with pytest.raises(WriteError) as error:
        write(tmp_path / "folder.nii.gz", labels, like=phantom())
    one_sentence(error, "is a folder")
    path = write(tmp_path / "a.nii.gz", labels, like=phantom())
    monkeypatch.setattr(files.os, "access", lambda *_: False)  # a super-user may write anywhere
    with pytest.raises(WriteError) as error:
        write(path, labels * 2, like=phantom())
    one_sentence(error, "a.nii.gz", "no permission")
    assert read_labels(path).max() == 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX modes and links")
def test_modes_and_links_stay(tmp_path):
    path = write(tmp_path / "a.nii.gz", np.ones((3, 5, 7), int), like=phantom())
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    path.chmod(0o600)
    link = tmp_path / "link.nii.gz"
    link.symlink_to(path)
    write(link, np.full((3, 5, 7), 2), like=phantom())
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_labels(path).max() == 2


# ------------------------------------------------------------------------------------------------------------------------ the rest


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("scan.nii.gz", "scan_labels.nii.gz"),
        ("scan.v2.nii", "scan.v2_labels.nii"),
        ("stack.ome.tif", "stack_labels.ome.tif"),
        ("photo.JPG", "photo_labels.png"),
        ("photo.jpeg", "photo_labels.png"),
        ("photo.png", "photo_labels.png"),
        ("scan.mhd", "scan_labels.mha"),
        ("scan.nrrd", "scan_labels.nrrd"),
    ],
)
def test_labels_lie_beside_the_image(tmp_path, name, expected):
    image = dataclasses.replace(phantom(), path=tmp_path / name)
    assert labels_path(image) == tmp_path / expected


def test_labels_of_an_image_from_no_file_lie_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert labels_path(Image(np.ones((1, 5, 7)))) == tmp_path / "image_labels.tif"
    assert labels_path(Image(np.ones((1, 5, 7)), name="cell [0] / a")) == tmp_path / "cell_0_a_labels.tif"
    assert labels_path(Image(np.ones((1, 5, 7)), name="..")) == tmp_path / "image_labels.tif"


def test_every_time_point_has_labels_of_its_own(tmp_path):
    image = Image(np.ones((1, 5, 7)), name="scan")
    for path, expected in ((tmp_path / "scan.nii.gz", "scan_t0_labels.nii.gz"), (tmp_path / "scan.mhd", "scan_t0_labels.mha")):
        assert labels_path(dataclasses.replace(image, path=path), time=0) == tmp_path / expected
    assert labels_path(image, time=12).name == "scan_t12_labels.tif"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("labels.xyz", "extension is not known"),
        ("labels.jpg", "cannot hold labels"),
        ("labels.png", "cannot hold a volume"),
        ("nowhere/labels.tif", "folder does not exist"),
        ("scan.nii.gz/labels.tif", "folder does not exist"),
        ("folder.tif", "is a folder"),
        ("strange.zarr", "not written by this program"),
        ("scan.nii.gz", "is the image itself"),
        ("link.nii.gz", "is the image itself"),
    ],
)
def test_where_labels_cannot_go_is_known_beforehand(tmp_path, name, words):
    image = read(save_image(tmp_path / "scan.nii.gz", Image(np.random.default_rng(0).random((1, 4, 5, 6), np.float32), name="scan")))
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / "scan.nii.gz")
    for folder in ("folder.tif", "strange.zarr"):
        (tmp_path / folder).mkdir()
    files.check_place(tmp_path / "labels.tif", like=image)
    with pytest.raises(WriteError) as error:
        files.check_place(tmp_path / name, like=image)
    one_sentence(error, words)


def test_labels_do_not_take_the_place_of_the_zarr_that_holds_their_image(tmp_path):
    save_image(tmp_path / "study.ome.zarr", Image(np.ones((1, 4, 5, 6), np.uint8)))
    image = read(tmp_path / "study.ome.zarr" / "0")
    with pytest.raises(WriteError) as error:
        files.check_place(tmp_path / "study.ome.zarr", like=image)
    one_sentence(error, "holds the image itself")


def test_a_place_without_permission_is_known_beforehand(tmp_path, monkeypatch):
    image = Image(np.ones((1, 5, 7)))
    (tmp_path / "labels.tif").touch()

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    for owner, what, name in ((files.os, "access", "labels.tif"), (Path, "touch", "other.tif")):
        monkeypatch.setattr(owner, what, refuse if owner is Path else lambda *_: False)
        with pytest.raises(WriteError, match="no permission"):
            files.check_place(tmp_path / name, like=image)
        monkeypatch.undo()
    files.check_place(tmp_path / "labels.tif", like=image)
    assert [path.name for path in tmp_path.iterdir()] == ["labels.tif"]


@pytest.mark.parametrize("extension", [".png", ".jpg"])
def test_a_picture_of_any_size_is_read(tmp_path, monkeypatch, extension):
    path, pixels = tmp_path / f"slide{extension}", np.indices((50, 60)).sum(axis=0).astype(np.uint8)
    PIL.Image.fromarray(pixels).save(path)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
    check_image(path)
    assert np.abs(read(path).data[0].astype(int) - pixels).max() <= (0 if extension == ".png" else 4)


def test_a_name_that_the_disk_takes_is_written_whatever_its_length(tmp_path):
    image = Image(np.arange(35).reshape(1, 5, 7))
    longest = tmp_path / f"{'x' * 251}.tif"
    files.check_place(longest, like=image)
    write(longest, np.ones((5, 7)), like=image)
    write(longest, np.full((5, 7), 2), like=image)
    assert (read_labels(longest) == 2).all()
    for each, name in ((False, f"{'x' * 252}.tif"), (True, longest.name)):
        with pytest.raises(WriteError) as error:
            files.check_place(tmp_path / name, like=image, each=each)
        one_sentence(error, "name too long")
    with pytest.raises(WriteError) as error:
        write(tmp_path / f"{'x' * 252}.tif", np.ones((5, 7)), like=image)
    one_sentence(error, "name too long")
    assert len(list(tmp_path.iterdir())) == 1


def test_numbers_and_sizes_that_a_format_cannot_hold_are_known_beforehand(tmp_path, monkeypatch):
    image = Image(np.arange(35).reshape(1, 5, 7))
    files.check_place(tmp_path / "labels.png", like=image, highest=65535)
    files.check_place(tmp_path / "labels.tif", like=image, highest=65536)
    files.check_place(tmp_path / "labels.png", like=image, highest=65536, each=True)
    with pytest.raises(WriteError) as error:
        files.check_place(tmp_path / "labels.png", like=image, highest=65536)
    one_sentence(error, "cannot hold the label 65536")
    monkeypatch.setattr(blocks, "LARGE_VOXELS", 34)
    files.check_place(tmp_path / "labels.ome.zarr", like=image)
    with pytest.raises(WriteError) as error:
        files.check_place(tmp_path / "labels.nii.gz", like=image)
    one_sentence(error, "cannot be written to NIfTI")
    with pytest.raises(WriteError) as error:
        files.check_place(tmp_path / "labels.ome.zarr", like=image, each=True)
    one_sentence(error, "for each object")


def test_a_file_of_one_object_does_not_take_the_place_of_the_image(tmp_path):
    image = read(save_image(tmp_path / "eye_07.tif", Image(np.arange(35, dtype=np.uint8).reshape(1, 5, 7))))
    files.check_place(tmp_path / "eye.tif", like=image)
    files.check_place(tmp_path / "eye_07_labels.tif", like=image, each=True)
    with pytest.raises(WriteError) as error:
        files.check_place(tmp_path / "eye.tif", like=image, each=True)
    one_sentence(error, "object 7 would replace the image itself")


def test_the_same_labels_give_the_same_bytes(tmp_path):
    image = phantom(affine=oblique())
    labels = some_labels(image.shape)
    for extension in VOLUME_FORMATS:
        if extension.endswith(".zarr"):  # a folder
            continue
        (tmp_path / "x").mkdir(exist_ok=True)
        first = write(tmp_path / f"a{extension}", labels, like=image).read_bytes()
        assert write(tmp_path / "x" / f"b{extension}", labels, like=image).read_bytes() == first


SAMPLES = Path(files.__file__).parents[1] / "sample_data"


@pytest.mark.parametrize(
    ("name", "shape", "channels", "spacing", "units", "count"),
    [
        ("em_stack.ome.tif", (12, 192, 192), 1, (40e-6, 8e-6, 8e-6), "mm", 7),
        ("fundus.png", (256, 256), 3, (1, 1), "pixel", 2),
        ("head.nii.gz", (14, 96, 96), 1, (5, 1, 1), "mm", 5),
    ],
)
def test_sample_data(name, shape, channels, spacing, units, count):
    image = read(SAMPLES / name)
    labels = read_labels(labels_path(image))
    assert (image.shape, len(image.data), image.units) == (shape, channels, units)
    assert image.spacing == pytest.approx(spacing)
    assert labels.shape == shape
    assert np.unique(labels).tolist() == list(range(count + 1))
    np.testing.assert_array_equal(read(labels_path(image)).affine, image.affine)


def test_sample_data_are_what_their_script_generates(tmp_path):
    spec = importlib.util.spec_from_file_location("generate", SAMPLES / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    generate.main(tmp_path)
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {path.name for path in SAMPLES.iterdir() if path.suffix not in (".py", ".md") and path.name != "__pycache__"}
    for name in made:
        # Other versions of the libraries may round a few values otherwise.
        same = np.isclose(read(tmp_path / name).data.astype(float), read(SAMPLES / name).data.astype(float), atol=8)
        assert same.mean() > 0.99, name
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 600_000


def test_swapping_the_frame_twice_is_nothing():
    np.testing.assert_array_equal(swap_lps_ras(swap_lps_ras(oblique())), oblique())


def test_units_doctests():
    import doctest

    from napari_apprentice.files import _lengths

    result = doctest.testmod(_lengths)
    assert result.attempted > 0
    assert result.failed == 0
