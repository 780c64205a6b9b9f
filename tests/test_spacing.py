"""A file that states no usable spacing is read in voxels, whose size is asked then; it is never taken for 1 mm."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile

from napari_apprentice import files
from napari_apprentice.cli import main
from napari_apprentice.files import read, read_labels, write
from napari_apprentice.geometry import affine_from_spacing
from napari_apprentice.types import Image, ReadError

VOXELS = np.random.default_rng(0).integers(0, 255, (4, 5, 7)).astype(np.uint8)
USELESS = (0.0, -2.0, math.nan, math.inf)
SPACING = (3.0, 0.75, 0.5)
UNKNOWN = "pixel", (1.0, 1.0, 1.0)


def spacing_of(path):
    """Units and spacing of a file whose voxels are `VOXELS`."""
    image = read(path)
    np.testing.assert_array_equal(image.data[0], VOXELS)
    return image.units, image.spacing


def nifti(path, *, pixdim=SPACING[::-1], rows=None, **codes):
    """A NIfTI file as written by nibabel, with other numbers in its header."""
    image = nibabel.Nifti1Image(VOXELS.T, affine_from_spacing(SPACING[::-1]))
    image.header.set_xyzt_units("mm")
    image.to_filename(path)
    header = image.header.copy()
    header["pixdim"][1:4], header["sform_code"], header["qform_code"] = pixdim, codes.get("sform", 0), codes.get("qform", 0)
    if rows is not None:
        header["srow_x"], header["srow_y"], header["srow_z"] = rows[:3]
    header["magic"], header["vox_offset"] = b"n+1", 352
    path.write_bytes(header.binaryblock + path.read_bytes()[len(header.binaryblock) :])
    return path


@pytest.mark.parametrize("qform", [0, 1])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("useless", USELESS)
def test_nifti_that_states_no_size_along_an_axis(tmp_path, useless, axis, qform):
    pixdim = [0.5, 0.75, 3.0]
    assert spacing_of(nifti(tmp_path / "good.nii", pixdim=pixdim, qform=qform)) == ("mm", pytest.approx(SPACING))
    pixdim[axis] = useless
    assert spacing_of(nifti(tmp_path / "a.nii", pixdim=pixdim, qform=qform)) == UNKNOWN


@pytest.mark.parametrize("rows", [np.diag([0.5, 0.75, 0.0, 1]), np.ones((4, 4)), np.diag([0.5, 0.75, math.nan, 1]), np.zeros((4, 4))])
def test_nifti_whose_affine_has_no_inverse(tmp_path, rows):
    assert spacing_of(nifti(tmp_path / "a.nii", rows=rows, sform=1)) == UNKNOWN


@pytest.mark.parametrize("rows", [np.diag([0.5, 0.75, 0.0, 1]), np.zeros((4, 4))])
def test_nifti_whose_sform_was_left_empty_lies_where_its_qform_says(tmp_path, rows):
    path = nifti(tmp_path / "a.nii", rows=rows, sform=1, qform=1)
    assert spacing_of(path) == ("mm", pytest.approx(SPACING))
    labels = (VOXELS > 100).astype(np.uint8)
    write(tmp_path / "labels.nii", labels, like=read(path))
    np.testing.assert_array_equal(read_labels(tmp_path / "labels.nii", like=read(path)), labels)


def test_nifti_whose_affine_says_it_needs_no_pixdim(tmp_path):
    rows = affine_from_spacing(SPACING[::-1])
    assert spacing_of(nifti(tmp_path / "a.nii", pixdim=(0, 0, 0), rows=rows, sform=1)) == ("mm", pytest.approx(SPACING))


def test_a_2d_nifti_needs_no_third_size(tmp_path):
    image = nibabel.Nifti1Image(VOXELS[0].T, None)
    image.header["pixdim"][1:4] = 0.5, 0.7, 1
    image.to_filename(tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[76 + 12 : 76 + 16] = bytes(4)
    (tmp_path / "a.nii").write_bytes(raw)
    assert (read(tmp_path / "a.nii").units, read(tmp_path / "a.nii").spacing) == ("mm", pytest.approx((0.7, 0.5)))


def metaimage(path, replacement):
    """A MetaImage as written by SimpleITK, with another line in the place of its spacing."""
    image = sitk.GetImageFromArray(VOXELS)
    image.SetSpacing(SPACING[::-1])
    sitk.WriteImage(image, str(path), useCompression=True)
    raw = path.read_bytes()
    assert b"ElementSpacing = 0.5 0.75 3\n" in raw
    path.write_bytes(raw.replace(b"ElementSpacing = 0.5 0.75 3\n", replacement))
    return path


@pytest.mark.parametrize("name", ["a.mha", "a.mhd"])
@pytest.mark.parametrize("line", [b"", b"ElementSpacing = 0.5 0.75 0\n", b"ElementSpacing = 0 0 0\n", b"ElementSpacing = 0.5 0.75 nan\n"])
def test_metaimage_without_a_spacing(tmp_path, name, line):
    assert spacing_of(metaimage(tmp_path / name, line)) == UNKNOWN


def test_a_negative_spacing_of_itk_is_an_axis_that_runs_backwards(tmp_path):
    image = read(metaimage(tmp_path / "a.mha", b"ElementSpacing = 0.5 0.75 -3\n"))
    assert (image.units, image.spacing) == ("mm", pytest.approx(SPACING))
    assert image.affine[0, 0] == pytest.approx(-3)


def test_metaimage_whose_directions_have_no_inverse(tmp_path):
    path = metaimage(tmp_path / "a.mha", b"ElementSpacing = 0.5 0.75 3\n")
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"TransformMatrix = 1 0 0 0 1 0 0 0 1", b"TransformMatrix = 1 0 0 0 1 0 0 1 0"))
    assert path.read_bytes() != raw
    assert spacing_of(path) == UNKNOWN


NRRD = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 7 5 4\nencoding: raw\n%s\n"
DIRECTIONS = b"space: left-posterior-superior\nspace directions: %s\nspace origin: (0,0,0)\n"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (b"spacings: 0.5 0.75 3\n", ("mm", pytest.approx(SPACING))),
        (DIRECTIONS % b"(0.5,0,0) (0,0.75,0) (0,0,3)", ("mm", pytest.approx(SPACING))),
        (b"", UNKNOWN),
        (b"spacings: 0.5 0.75 0\n", UNKNOWN),
        (b"spacings: 0.5 0.75 nan\n", UNKNOWN),
        (DIRECTIONS % b"(0.5,0,0) (0,0.75,0) (0,0,0)", UNKNOWN),
        (DIRECTIONS % b"(0.5,0,0) (0,0.75,0) (0,0.75,0)", UNKNOWN),
        (DIRECTIONS % b"(0.5,0,0) (0,0.75,0) (0,0,nan)", UNKNOWN),
        (b"space dimension: 3\nspace directions: (0.5,0,0) (0,0.75,0) none\n", UNKNOWN),
    ],
)
def test_nrrd(tmp_path, fields, expected):
    (tmp_path / "a.nrrd").write_bytes(NRRD % fields + VOXELS.tobytes())
    assert spacing_of(tmp_path / "a.nrrd") == expected


UNITS = [
    ("mm", ("mm", 1.0)),
    ("um", ("mm", 1e-3)),
    ("µm", ("mm", 1e-3)),
    ("Nanometer", ("mm", 1e-6)),
    ("cm", ("mm", 10.0)),
    ("fathom", ("pixel", 1.0)),
    ("?", ("mm", 1.0)),
]


@pytest.mark.parametrize(("unit", "expected"), UNITS)
@pytest.mark.parametrize(
    "fields",
    [
        "spacings: 0.5 0.75 3\nunits: {0} {0} {0}\n",
        "space: left-posterior-superior\nspace units: {0} {0} {0}\nspace directions: (0.5,0,0) (0,0.75,0) (0,0,3)\nspace origin: (4,5,6)\n",
        "DistanceUnits = {0}\n",
    ],
)
def test_units_of_itk_formats_become_mm_and_the_labels_keep_them(tmp_path, fields, unit, expected):
    if fields.startswith("Distance"):
        path = metaimage(tmp_path / "a.mha", b"ElementSpacing = 0.5 0.75 3\n" + fields.format(unit).encode())
    else:
        path = tmp_path / "a.nrrd"
        path.write_bytes(NRRD % fields.format(f'"{unit}"').encode() + VOXELS.tobytes())
    units, mm = expected
    image = read(path)
    assert (image.units, image.spacing) == (units, pytest.approx([length * mm for length in SPACING]))
    assert image.affine[:3, 3].tolist() == pytest.approx([6 * mm, -5 * mm, -4 * mm] if "origin" in fields else [0, 0, 0])
    for extension in (".nrrd", ".mha", ".nii.gz"):
        labels = write(tmp_path / f"labels{extension}", VOXELS, like=image)
        np.testing.assert_array_equal(read_labels(labels, like=image), VOXELS)
        assert extension == ".nii.gz" or sitk.ReadImage(str(labels)).GetSpacing() == pytest.approx(SPACING[::-1])


def test_world_axes_of_different_units(tmp_path):
    fields = (
        b'space: left-posterior-superior\nspace units: "um" "nm" "mm"\nspace directions: (0,2,0) (3,0,0) (0,0,4)\nspace origin: (1,1,1)\n'
    )
    (tmp_path / "a.nrrd").write_bytes(NRRD % fields + VOXELS.tobytes())
    image = read(tmp_path / "a.nrrd")
    assert image.spacing == pytest.approx((4, 3e-3, 2e-6))
    for extension in (".nrrd", ".mha"):
        np.testing.assert_allclose(read(write(tmp_path / f"labels{extension}", VOXELS, like=image)).affine, image.affine, rtol=1e-6)


def test_what_itk_writes_says_its_spacing(tmp_path):
    """Colours, series and volumes of ITK's own have other headers than those above."""
    for extension in (".mha", ".nrrd"):
        for array, vectors in ((VOXELS, False), (np.stack([VOXELS] * 3, -1), True), (VOXELS[None], False)):
            image = sitk.GetImageFromArray(array, isVector=vectors)
            image.SetSpacing((*SPACING[::-1], 9.0)[: image.GetDimension()])
            sitk.WriteImage(image, str(tmp_path / f"a{extension}"))
            assert (read(tmp_path / f"a{extension}").units, read(tmp_path / f"a{extension}").spacing) == ("mm", pytest.approx(SPACING))


@pytest.mark.parametrize("useless", [0.0, math.nan, math.inf, None])
def test_imagej_without_a_distance_of_slices(tmp_path, useless):
    metadata = {"axes": "ZYX", "unit": "mm", **({} if useless is None else {"spacing": useless})}
    tifffile.imwrite(tmp_path / "a.tif", VOXELS, imagej=True, resolution=(2, 1 / 0.75), metadata=metadata)
    assert spacing_of(tmp_path / "a.tif") == UNKNOWN
    labels = write(tmp_path / "labels.tif", VOXELS, like=read(tmp_path / "a.tif"))
    assert spacing_of(labels) == UNKNOWN
    with tifffile.TiffFile(labels) as file:  # what the image does say, its labels say, too
        assert (file.imagej_metadata["unit"], file.pages.first.tags["XResolution"].value) == ("mm", (2, 1))


@pytest.mark.parametrize("resolution", [((0, 1), (0, 1)), ((0, 1), (2, 1))])
def test_a_density_of_zero(tmp_path, resolution):
    for name, options in (("a.tif", {"imagej": True, "metadata": {"axes": "ZYX", "unit": "mm", "spacing": 3.0}}), ("b.tif", {})):
        tifffile.imwrite(tmp_path / name, VOXELS, photometric="minisblack", resolution=resolution, resolutionunit=3, **options)
        assert spacing_of(tmp_path / name) == UNKNOWN
        assert spacing_of(write(tmp_path / f"labels_{name}", VOXELS, like=read(tmp_path / name))) == UNKNOWN


def test_a_density_says_nothing_of_the_distance_of_slices(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", VOXELS, photometric="minisblack", resolution=(20, 20), resolutionunit=3, metadata=None)
    assert spacing_of(tmp_path / "a.tif") == UNKNOWN


@pytest.mark.parametrize("axis", "XYZ")
@pytest.mark.parametrize("useless", [*USELESS, None])
def test_ome_tiff_without_a_size(tmp_path, axis, useless):
    metadata = {f"PhysicalSize{a}": s for a, s in zip("ZYX", SPACING, strict=True)} | {f"PhysicalSize{a}Unit": "mm" for a in "XYZ"}
    metadata[f"PhysicalSize{axis}"] = useless
    stated = {key: value for key, value in metadata.items() if value is not None}
    tifffile.imwrite(tmp_path / "a.ome.tif", VOXELS, metadata={"axes": "ZYX", **stated})
    assert spacing_of(tmp_path / "a.ome.tif") == UNKNOWN
    assert spacing_of(write(tmp_path / "labels.ome.tif", VOXELS, like=read(tmp_path / "a.ome.tif"))) == UNKNOWN


def test_ome_sizes_in_pixels_are_no_lengths(tmp_path):
    metadata = {"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "mm", "PhysicalSizeY": 0.7, "PhysicalSizeYUnit": "mm"}
    metadata |= {"PhysicalSizeZ": 3.0, "PhysicalSizeZUnit": "pixel"}
    tifffile.imwrite(tmp_path / "a.ome.tif", VOXELS, metadata={"axes": "ZYX", **metadata})
    assert spacing_of(tmp_path / "a.ome.tif") == UNKNOWN


@pytest.mark.parametrize("useless", [0.0, math.nan, math.inf, None])
def test_ome_zarr_without_a_scale(tmp_path, useless):
    image = Image(VOXELS[None], affine_from_spacing(SPACING), "mm")
    path = files.save_image(tmp_path / "a.ome.zarr", image)
    assert spacing_of(path) == ("mm", pytest.approx(SPACING))
    described = json.loads((path / "zarr.json").read_text())
    steps = described["attributes"]["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    if useless is None:
        steps[:] = [step for step in steps if step["type"] != "scale"]
    else:
        steps[0]["scale"][0] = useless
    (path / "zarr.json").write_text(json.dumps(described))
    assert spacing_of(path) == UNKNOWN
    assert spacing_of(write(tmp_path / "labels.ome.zarr", VOXELS, like=read(path))) == UNKNOWN


@pytest.mark.parametrize("extension", [".nii.gz", ".mha", ".nrrd", ".tif", ".ome.tif", ".ome.zarr"])
def test_labels_of_such_a_file_can_be_written_everywhere(tmp_path, extension):
    image = read(nifti(tmp_path / "a.nii", pixdim=(0.5, 0.7, 0)))
    path = write(tmp_path / f"labels{extension}", VOXELS, like=image)
    np.testing.assert_array_equal(read_labels(path, like=image), VOXELS)


def test_commands_say_that_no_spacing_is_stated(tmp_path, capsys):
    labels = write(tmp_path / "labels.nii", VOXELS > 200, like=Image(VOXELS[None]))
    for name, pixdim, said in (("none.nii", (0.5, 0.7, 0), 1), ("good.nii", (0.5, 0.7, 3), 0)):
        path = nifti(tmp_path / name, pixdim=pixdim)
        grid = write(tmp_path / f"{name}_labels.nii", read_labels(labels), like=read(path))
        assert main(["measure", str(path), str(grid), "--out", str(tmp_path / f"{name}.csv")]) == 0
        sentences = [line for line in capsys.readouterr().err.splitlines() if "how large a voxel is" in line]
        assert len(sentences) == said
        assert all("'none'" in sentence and "voxels" in sentence for sentence in sentences)
        assert ("volume_pixel3" in (tmp_path / f"{name}.csv").read_text()) == bool(said)


# ------------------------------------------------------------------------------------------------------------------------- no unit


def unitless(path, linear=((1, 0, 0), (0, 1, 0), (0, 0, 1)), origin=(-3.0, 4.0, 7.5), unit="unknown", **codes):
    """A NIfTI file with a unit of its own choice, as nibabel writes it (by itself without one)."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = linear, origin
    image = nibabel.Nifti1Image(VOXELS.T, affine)
    image.set_qform(affine, codes.get("qform", 0))
    image.set_sform(affine, codes.get("sform", 2))
    image.header.set_xyzt_units(unit)
    image.to_filename(path)
    return path


TURN = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])


@pytest.mark.parametrize("codes", [{"sform": 2}, {"sform": 0, "qform": 1}, {"sform": 1, "qform": 1}, {"sform": 0, "qform": 0}], ids=str)
@pytest.mark.parametrize("linear", [np.eye(3), np.diag([-1, -1, 1]), TURN], ids=["straight", "mirrored", "turned"])
def test_one_by_one_by_one_of_no_unit_is_no_size(tmp_path, linear, codes):
    for unit, factor, expected in (
        ("unknown", 1.0, ("pixel", 1.0)),
        ("unknown", 1.001, ("mm", 1.001)),
        ("unknown", 10.0, ("mm", 10.0)),
        ("mm", 1.0, ("mm", 1.0)),
        ("micron", 1.0, ("mm", 1e-3)),
    ):
        path = unitless(tmp_path / "a.nii", linear * factor, unit=unit, **codes)
        assert spacing_of(path) == (expected[0], pytest.approx((expected[1],) * 3))
    assert spacing_of(unitless(tmp_path / "a.nii", linear @ np.diag([1, 1, 2]), **codes)) == ("mm", pytest.approx((2, 1, 1)))


@pytest.mark.parametrize("linear", [np.eye(3), np.diag([-1, -1, 1]), TURN], ids=["straight", "mirrored", "turned"])
def test_what_such_a_file_does_say_its_labels_say_too(tmp_path, linear):
    path = unitless(tmp_path / "a.nii.gz", linear, qform=1)
    np.testing.assert_allclose(read(path).affine[:3, :3][::-1, ::-1], linear, atol=1e-7)
    labels = write(tmp_path / "labels.nii.gz", VOXELS, like=read(path))
    first, second = (nibabel.load(each).header for each in (path, labels))
    for field in ("srow_x", "srow_y", "srow_z", "sform_code", "qform_code", "quatern_d", "qoffset_x", "pixdim", "xyzt_units"):
        np.testing.assert_array_equal(first[field], second[field], err_msg=field)
    np.testing.assert_array_equal(read_labels(labels, like=read(path)), VOXELS)


@pytest.mark.parametrize("spacing", [1.0, 0.5])
@pytest.mark.parametrize("linear", [np.eye(3), np.diag([-1, -1, 1]), TURN], ids=["straight", "mirrored", "turned"])
def test_labels_are_in_mm_where_somebody_has_stated_the_spacing_since(tmp_path, linear, spacing):
    path = unitless(tmp_path / "a.nii.gz", linear, qform=1, origin=(-3.0, 4.0, 7.5))
    image = read(path)
    stated = replace(image, affine=image.affine @ np.diag([spacing] * 3 + [1]), units="mm")  # as a user says in the window
    labels = write(tmp_path / "labels.nii.gz", VOXELS, like=stated)
    first, second = nibabel.load(path), nibabel.load(labels)
    assert second.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(second.affine, first.affine @ np.diag([spacing] * 3 + [1]), atol=1e-6)
    first, second = (sitk.ReadImage(str(each)) for each in (path, labels))
    np.testing.assert_allclose(second.GetSpacing(), spacing * np.array(first.GetSpacing()), atol=1e-6)
    np.testing.assert_allclose(second.GetDirection(), first.GetDirection(), atol=1e-6)
    np.testing.assert_allclose(second.GetOrigin(), first.GetOrigin(), atol=1e-6)
    np.testing.assert_array_equal(read_labels(labels, like=stated), VOXELS)


def test_a_unit_that_nobody_named_stays_unnamed_in_the_labels(tmp_path):
    path = unitless(tmp_path / "a.nii", 0.5 * np.eye(3))
    assert read(path).units == "mm"
    labels = write(tmp_path / "labels.nii", VOXELS, like=read(path))
    assert nibabel.load(labels).header.get_xyzt_units()[0] == "unknown"


@pytest.mark.parametrize(
    ("elsewhere", "words"),
    [
        ({"origin": (27.0, 4.0, 7.5)}, "up to 30 voxels away from 'a' in the world"),
        ({"linear": np.diag([-1, 1, 1])}, "voxels away from 'a' in the world"),
        ({"linear": TURN}, "voxels away from 'a' in the world"),
        ({"linear": np.diag([7, 7, 7])}, "a spacing of 7 × 7 × 7; expected 1 × 1 × 1, that of 'a'"),
    ],
)
def test_labels_of_another_grid_are_refused_although_neither_file_names_a_unit(tmp_path, elsewhere, words):
    image, labels = read(unitless(tmp_path / "a.nii")), tmp_path / "labels.nii"
    np.testing.assert_array_equal(read_labels(unitless(labels), like=image), VOXELS)
    with pytest.raises(ReadError, match=words):
        read_labels(unitless(labels, **elsewhere), like=image)
    with pytest.raises(ReadError, match=r"spacing|away"):
        read_labels(labels.with_name("a.nii"), like=read(unitless(labels, **elsewhere)))


def test_what_does_not_say_where_it_lies_is_compared_by_its_shape(tmp_path):
    image, labels = read(unitless(tmp_path / "a.nii")), unitless(tmp_path / "labels.nii", origin=(27.0, 4.0, 7.5), sform=0)
    stated = replace(image, affine=np.diag([0.5, 0.5, 0.5, 1.0]), units="mm")  # as a user says in the window
    for path, like in (
        (labels, image),
        (tmp_path / "a.nii", read(labels)),
        (write(tmp_path / "labels.tif", VOXELS, like=image), image),
        (tmp_path / "a.nii", read(tmp_path / "labels.tif")),
        (write(tmp_path / "stated.nii", VOXELS, like=stated), image),
        (tmp_path / "a.nii", stated),
        (tmp_path / "a.nii", Image(image.data)),
    ):
        np.testing.assert_array_equal(read_labels(path, like=like), VOXELS)


def test_a_nifti_of_a_picture_without_a_size_says_none_either(tmp_path):
    for image in (Image(VOXELS[None]), Image(VOXELS[None, 0])):
        assert read(files.save_image(tmp_path / "a.nii", image)).units == "pixel"


def test_commands_say_that_no_unit_is_stated(tmp_path, capsys):
    for name, unit, said in (("none", "unknown", 1), ("good", "mm", 0)):
        path = unitless(tmp_path / f"{name}.nii", unit=unit)
        labels = write(tmp_path / f"{name}_labels.nii", VOXELS > 200, like=read(path))
        assert main(["measure", str(path), str(labels), "--out", str(tmp_path / "table.csv")]) == 0
        assert capsys.readouterr().err.count("'none' does not say how large a voxel is") == said
        assert ("volume_pixel3" in (tmp_path / "table.csv").read_text()) == bool(said)


@pytest.mark.parametrize(
    ("unstated", "said"),
    [(1, "1 of 5 images ('a') does not"), (2, "2 of 5 images ('a', 'b') do not"), (5, "('a', 'b', 'c' and 2 more) do not")],
)
def test_measure_says_once_of_all_images_that_no_unit_is_stated(tmp_path, capsys, unstated, said):
    images, labels = tmp_path / "images", tmp_path / "labels"
    for folder in (images, labels):
        folder.mkdir()
    for number, name in enumerate("abcde"):
        path = unitless(images / f"{name}.nii", unit="unknown" if number < unstated else "mm")
        write(labels / f"{name}.nii", VOXELS > 200, like=read(path))
    assert main(["measure", str(images), str(labels), "--out", str(tmp_path / "table.csv")]) == 0
    err = capsys.readouterr().err
    assert err.count("how large a voxel is") == 1
    assert said in err
