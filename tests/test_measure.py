"""Laws of measuring, and ITK as the judge wherever it measures the same."""

from __future__ import annotations

import csv
import io
import itertools
import math

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from napari_apprentice import crofton
from napari_apprentice import measure as module
from napari_apprentice.geometry import affine_from_spacing, reverse_axes, spacing_of, swap_lps_ras
from napari_apprentice.measure import UNITS, Work, as_csv, columns, in_unit, measure, table
from napari_apprentice.types import Image, InputError, LabelsError

SPACINGS = {"isotropic": (0.5, 0.5, 0.5), "anisotropic": (5.0, 0.7, 0.4), "nanometres": (5e-5, 8e-6, 8e-6)}


def rotated(spacing, degrees=(20.0, -35.0, 11.0), origin=(-31.0, 12.5, 7.25), mirrored=False):
    """(n+1, n+1) affine of a turned grid."""
    n = len(spacing)
    turn = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() if n == 3 else _turn(np.deg2rad(degrees[0]))
    affine = np.eye(n + 1)
    affine[:n, :n] = turn @ np.diag([-spacing[0] if mirrored else spacing[0], *spacing[1:]])
    affine[:n, n] = origin[:n]
    return affine


def _turn(angle):
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def sheared(spacing):
    affine = rotated(spacing)
    affine[:-1, :-1] = affine[:-1, :-1] @ (np.eye(len(spacing)) + np.diag([0.4] * (len(spacing) - 1), 1))
    return affine


def scene(shape=(9, 20, 24), seed=0, channels=1, ids=(1, 2, 7, 300, 70_000)):
    """Blobs with holes, some at the border, some in pieces, and an image of noise."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint32)
    for label in ids:
        corner = [rng.integers(0, size - 3) for size in shape]
        box = tuple(slice(c, c + int(rng.integers(2, 1 + size // 2))) for c, size in zip(corner, shape, strict=True))
        labels[box] = np.where(rng.random(labels[box].shape) < 0.85, label, labels[box])
    labels.flat[-1] = 4  # a single voxel, in a corner
    return labels, rng.normal(100, 30, (channels, *shape))


def itk(array, affine):
    """An image in ITK's own words, made without the package's writers."""
    n = array.ndim
    matrix = reverse_axes(swap_lps_ras(affine) if n == 3 else affine)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing_of(matrix))
    image.SetOrigin(matrix[:n, n].tolist())
    image.SetDirection((matrix[:n, :n] / spacing_of(matrix)).ravel().tolist())
    return image


def by_label(measures):
    return {one.label: one for one in measures}


def same(one, other, rtol=1e-9):
    """Whether two objects measure the same, whatever their ids."""
    assert (one.voxels, one.first, one.last, one.slices) == (other.voxels, other.first, other.last, other.slices)
    for name in ("size", "border", "centroid", "mean", "std", "lowest", "highest"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=rtol, atol=1e-12, err_msg=name)


# ------------------------------------------------------------------------------------------------------------------------- as ITK


@pytest.mark.parametrize("spacing", SPACINGS.values(), ids=SPACINGS)
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("n", [2, 3])
def test_itk_measures_the_same(n, mirrored, spacing):
    labels, data = scene((9, 20, 24) if n == 3 else (30, 40))
    affine = rotated(spacing[-n:], origin=np.array((-31.0, 12.5, 7.25)) * min(spacing), mirrored=mirrored)
    measures = by_label(measure(labels, Image(data, affine, "mm")))
    shapes, intensities = sitk.LabelShapeStatisticsImageFilter(), sitk.LabelIntensityStatisticsImageFilter()
    shapes.Execute(itk(labels, affine))
    intensities.Execute(itk(labels, affine), itk(data[0], affine))
    assert set(measures) == set(shapes.GetLabels()) == {1, 2, 4, 7, 300, 70_000}
    for label, one in measures.items():
        assert one.voxels == shapes.GetNumberOfPixels(label)
        assert one.size == pytest.approx(shapes.GetPhysicalSize(label), rel=1e-6)
        signs = (1, -1, -1) if n == 3 else (1, 1)  # ITK's world is (L, P, S)
        centroid = np.array(shapes.GetCentroid(label)[::-1]) * signs
        np.testing.assert_allclose(one.centroid, centroid, rtol=1e-6, atol=1e-6 * min(spacing))
        box = shapes.GetBoundingBox(label)
        assert one.first == box[:n][::-1]
        assert tuple(last - first + 1 for first, last in zip(one.first, one.last, strict=True)) == box[n:][::-1]
        assert one.mean[0] == pytest.approx(intensities.GetMean(label), rel=1e-6)
        assert one.lowest[0] == pytest.approx(intensities.GetMinimum(label), rel=1e-6)
        assert one.highest[0] == pytest.approx(intensities.GetMaximum(label), rel=1e-6)
        if one.voxels > 1:
            assert one.std[0] == pytest.approx(intensities.GetStandardDeviation(label), rel=1e-6)
        if len(set(spacing)) == 1:  # ITK weighs directions as if grids were isotropic
            assert one.border == pytest.approx(shapes.GetPerimeter(label), rel=1e-6)


# ------------------------------------------------------------------------------------------------------------------------- a slow judge


@pytest.mark.parametrize("affine", [rotated(SPACINGS["anisotropic"]), sheared(SPACINGS["anisotropic"])], ids=["rotated", "sheared"])
def test_each_object_measured_on_its_own_gives_the_same(affine):
    labels, data = scene(channels=3)
    for one in measure(labels, Image(data, affine, "mm")):
        voxels = np.argwhere(labels == one.label)
        values = data[:, labels == one.label]
        assert one.voxels == len(voxels)
        assert one.size == pytest.approx(len(voxels) * abs(np.linalg.det(affine)), rel=1e-12)
        np.testing.assert_allclose(one.centroid, (voxels @ affine[:3, :3].T + affine[:3, 3]).mean(axis=0), rtol=1e-12)
        assert (one.first, one.last) == (tuple(voxels.min(axis=0)), tuple(voxels.max(axis=0)))
        np.testing.assert_allclose(one.mean, values.mean(axis=1), rtol=1e-12)
        np.testing.assert_array_equal(one.lowest, values.min(axis=1))
        np.testing.assert_array_equal(one.highest, values.max(axis=1))
        if one.voxels > 1:
            np.testing.assert_allclose(one.std, values.std(axis=1, ddof=1), rtol=1e-12)
        assert one.slices == tuple((labels[z] == one.label).sum() for z in range(one.first[0], one.last[0] + 1))


# ------------------------------------------------------------------------------------------------------------------------- laws


@pytest.mark.parametrize("n", [2, 3])
@settings(max_examples=20)
@given(factor=st.floats(1e-4, 1e4), seed=st.integers(0, 99))
def test_scaling_the_world_scales_what_is_measured(n, factor, seed):
    labels, data = scene((6, 9, 10)[:n], seed, ids=(1, 2))
    affine = sheared((3.0, 1.0, 0.5)[:n])
    scaled = affine.copy()
    scaled[:n] *= factor
    for small, large in zip(measure(labels, Image(data, affine)), measure(labels, Image(data, scaled)), strict=True):
        assert large.size == pytest.approx(small.size * factor**n, rel=1e-9)
        assert large.border == pytest.approx(small.border * factor ** (n - 1), rel=1e-6)
        np.testing.assert_allclose(large.centroid, np.array(small.centroid) * factor, rtol=1e-9, atol=1e-9 * factor)
        assert (large.voxels, large.first, large.last) == (small.voxels, small.first, small.last)
        np.testing.assert_array_equal([large.mean, large.std], [small.mean, small.std])


@pytest.mark.parametrize("n", [2, 3])
def test_moving_and_turning_the_world_changes_places_only(n):
    labels, data = scene((6, 9, 10)[:n])
    spacing = (3.0, 1.0, 0.5)[:n]
    straight = measure(labels, Image(data, affine_from_spacing(spacing)))
    turned = rotated(spacing, mirrored=True)
    for before, after in zip(straight, measure(labels, Image(data, turned)), strict=True):
        assert (after.size, after.border) == (pytest.approx(before.size, rel=1e-12), pytest.approx(before.border, rel=1e-7))
        np.testing.assert_allclose(after.centroid, turned[:n, :n] @ (np.array(before.centroid) / spacing) + turned[:n, n], rtol=1e-9)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_order_of_voxel_axes_does_not_matter(order):
    labels, data = scene()
    affine = sheared((3.0, 1.0, 0.5))
    permuted = affine[:, [*order, 3]]
    other = measure(labels.transpose(order), Image(data.transpose(0, *(axis + 1 for axis in order)), permuted))
    for one, same_one in zip(measure(labels, Image(data, affine)), other, strict=True):
        np.testing.assert_allclose(same_one.centroid, one.centroid, rtol=1e-9)
        assert same_one.border == pytest.approx(one.border, rel=1e-7)
        assert tuple(same_one.first) == tuple(one.first[axis] for axis in order)
        assert (same_one.voxels, same_one.size) == (one.voxels, pytest.approx(one.size))


@settings(max_examples=25)
@given(st.permutations([0, 1, 2, 3, 4]), st.sampled_from([1, 1000, 2**23, 2**40]))
def test_other_ids_are_other_rows_of_the_same_objects(order, factor):
    labels, data = scene((5, 9, 10), ids=(1, 2, 3, 5))
    names = np.zeros(6, np.uint64)
    names[1:] = [(1 + i) * factor for i in order]
    image = Image(data, rotated((3.0, 1.0, 0.5)))
    before, after = by_label(measure(labels, image)), by_label(measure(names[labels], image))
    assert list(after) == sorted(after)
    assert set(after) == {int(names[label]) for label in before}
    for label, one in before.items():
        same(one, after[int(names[label])], rtol=0)


def test_what_is_apart_adds_up():
    labels = np.zeros((9, 20, 24), np.uint8)
    labels[2:5, 3:9, 4:9] = 1
    labels[6:8, 12:19, 12:20] = 2
    image = Image(np.random.default_rng(0).normal(size=(1, *labels.shape)), sheared((3.0, 1.0, 0.5)), "mm")
    first, second = measure(labels, image)
    (both,) = measure(labels > 0, image)
    assert both.size == pytest.approx(first.size + second.size)
    assert both.border == pytest.approx(first.border + second.border)
    assert both.mean[0] == pytest.approx((first.mean[0] * first.voxels + second.mean[0] * second.voxels) / both.voxels)
    np.testing.assert_allclose(
        both.centroid, (np.array(first.centroid) * first.voxels + np.array(second.centroid) * second.voxels) / both.voxels
    )
    assert both.slices == (*first.slices, 0, *second.slices)


@pytest.mark.parametrize("shape", [(9, 20, 24), (30, 40)])
@pytest.mark.parametrize("slab", [1, 1000, 10**6])
def test_slabs_leave_no_seam(monkeypatch, shape, slab):
    labels, data = scene(shape, channels=3)
    image = Image(data, rotated((3.0, 1.0, 0.5)[: len(shape)]))
    whole = measure(labels, image)
    monkeypatch.setattr(module, "_SLAB_VOXELS", slab)
    for one, other in zip(whole, measure(labels, image), strict=True):
        assert one.label == other.label
        same(one, other)


def test_only_slabs_with_objects_are_read_of_the_image_and_all_is_read_once(monkeypatch):
    class OnDisk:
        def __init__(self, array, axis):
            self.array, self.axis, self.shape, self.dtype, self.read = array, axis, array.shape, array.dtype, []

        def __getitem__(self, index):
            layers = index[self.axis] if isinstance(index, tuple) else index
            self.read.append((layers.start, layers.stop))
            return self.array[index]

    labels, data = scene(ids=(3,))
    labels[:], labels[5:7, 3:9, 3:9] = 0, 3
    monkeypatch.setattr(module, "_SLAB_VOXELS", 20 * 24)
    image, lazy = Image(OnDisk(data, 1)), OnDisk(labels, 0)
    done = []
    (one,) = measure(lazy, image, on_layers=lambda *layers: done.append(layers))
    same(one, measure(labels, Image(data))[0])
    assert image.data.read == [(5, 6), (6, 7)]
    assert max(stop - start for start, stop in lazy.read) <= 2
    assert done == [(i, 9) for i in (*range(1, 10), 9)]


def test_who_is_told_of_progress_may_stop_it():
    def stop(done, total):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        measure(*(lambda labels, data: (labels, Image(data)))(*scene()), on_layers=stop)


# ------------------------------------------------------------------------------------------------------------------------- the border


def ellipsoid(radii, affine, margin=3):
    """Of these radii in the world, in the middle of a grid with the matrix of ``affine``."""
    n = len(radii)
    linear = affine[:n, :n]
    reach = [math.ceil(max(radii) * np.linalg.norm(row)) + margin for row in np.linalg.inv(linear)]
    grid = np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij"), axis=-1)
    return ((grid @ linear.T / radii) ** 2).sum(axis=-1) <= 1


def border(mask, affine):
    (one,) = measure(mask, Image(np.zeros((1, *mask.shape), np.uint8), affine))
    return one.border


@pytest.mark.parametrize(
    ("affine", "tolerance"),
    [
        (affine_from_spacing((1, 1, 1)), 0.01),
        (affine_from_spacing((2, 1, 1)), 0.015),
        (affine_from_spacing((1, 2, 2)), 0.015),
        (affine_from_spacing((3, 1, 1)), 0.02),
        (rotated((3.0, 1.0, 1.0)), 0.02),
        (sheared((1.0, 1.0, 1.0)), 0.02),
        (affine_from_spacing((5, 1, 1)), 0.04),
    ],
)
def test_the_surface_of_a_ball(affine, tolerance):
    assert border(ellipsoid((20, 20, 20), affine), affine) == pytest.approx(4 * math.pi * 20**2, rel=tolerance)


@pytest.mark.parametrize(("affine", "tolerance"), [(np.eye(3), 0.02), (rotated((2.0, 1.0)), 0.03), (sheared((1.0, 1.0)), 0.03)])
def test_the_perimeter_of_a_disk(affine, tolerance):
    assert border(ellipsoid((40, 40), affine), affine) == pytest.approx(2 * math.pi * 40, rel=tolerance)


def test_on_anisotropic_grids_it_is_closer_than_what_itk_says():
    """Ellipsoids of revolution, turned in five ways, on slices that are three times as far apart as pixels."""
    e = math.sqrt(1 - (12 / 24) ** 2)
    truth = 2 * math.pi * 12**2 * (1 + 24 / (12 * e) * math.asin(e))
    shapes = sitk.LabelShapeStatisticsImageFilter()
    ours, theirs = [], []
    for angles in [(20, -35, 11), (80, 10, 40), (-50, 60, 0), (15, 5, -70), (45, 45, 45)]:
        affine = rotated((3.0, 1.0, 1.0), angles)
        mask = ellipsoid((24, 12, 12), affine)
        shapes.Execute(itk(mask.astype(np.uint8), affine))
        ours.append(abs(border(mask, affine) / truth - 1))
        theirs.append(abs(shapes.GetPerimeter(1) / truth - 1))
    assert np.mean(ours) < 0.03 < np.mean(theirs)
    assert max(ours) < 0.05


def test_the_border_is_closed_where_the_image_ends():
    mask = np.zeros((6, 7, 8), bool)
    mask[2:4, 2:5, 2:6] = True
    affine = sheared((3.0, 1.0, 0.5))
    assert border(mask[2:4, 2:5, 2:6], affine) == pytest.approx(border(mask, affine))


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.floats(1, 300), st.sampled_from([2, 3]))
def test_directions_share_the_world_among_them(seed, ratio, n):
    linear = np.random.default_rng(seed).normal(size=(n, n)) @ np.diag([ratio, 1, 1][:n])
    if abs(np.linalg.det(linear / np.linalg.norm(linear, axis=0))) < 0.05:
        return
    steps = crofton.half_of_the_neighbours(n) @ linear.T
    shares = crofton._shares(steps / np.linalg.norm(steps, axis=1)[:, None])
    assert len(shares) == (3**n - 1) // 2
    assert shares.min() > 0
    assert shares.sum() == pytest.approx(1)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.floats(-14, 14), st.booleans(), st.sampled_from([2, 3]))
def test_voxels_may_be_as_long_and_thin_as_a_file_says(seed, exponent, turned, n):
    """The border of a voxel, for its longest face (edge, in 2D) being 1, has a limit."""
    axis = int(np.random.default_rng(seed).integers(n))

    def of(stretch):
        spacing = np.where(np.arange(n) == axis, stretch, 1.0)
        linear = rotated(spacing)[:n, :n] if turned else np.diag(spacing)
        return crofton.border_per_crossing(crofton.half_of_the_neighbours(n), linear).sum() / max(stretch, 1)

    assert 0 < of(10**exponent) < math.inf
    if abs(exponent) >= 5:
        assert of(10**exponent) == pytest.approx(of(1e5 if exponent > 0 else 1e-5), rel=1e-4)


# ------------------------------------------------------------------------------------------------------------------------- special cases


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("n", "units"), [(2, "mm"), (3, "mm"), (3, "pixel")])
@pytest.mark.parametrize("spacing", [1.0, 1e-4])
def test_the_columns_are_known_without_an_object(channels, n, units, spacing):
    labels = np.ones((4, 5, 6)[:n], np.uint8)
    image = Image(np.zeros((channels, *labels.shape)), affine_from_spacing((spacing,) * n), units)
    for work in (None, {1: Work(3, 2.0)}):
        rows = table(measure(labels, image), work=work)
        assert columns(image, work=work is not None) == list(rows[0])
        assert as_csv([], columns(image, work=work is not None)) == as_csv(rows).splitlines(keepends=True)[0]


def test_an_empty_label_map_has_no_objects():
    assert measure(np.zeros((4, 5), int), Image(np.zeros((1, 4, 5)))) == ()
    assert as_csv(table(())) == "case\n"


def test_what_is_not_known_of_an_intensity_is_not_made_up():
    labels = np.array([[1, 1, 2, 2]] * 2)
    data = np.array([[[1.0, 3.0, 5.0, np.nan]] * 2])
    one, two = measure(labels, Image(data))
    assert (one.mean, one.lowest, one.highest) == ((2.0,), (1.0,), (3.0,))
    assert all(math.isnan(value[0]) for value in (two.mean, two.std, two.lowest, two.highest))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("slab", [2**22, 1])
def test_an_infinite_value_leaves_no_spread(monkeypatch, slab):
    monkeypatch.setattr(module, "_SLAB_VOXELS", slab)
    data = np.ones((1, 4, 5, 6))
    for value, lowest, highest in ((np.inf, 1.0, np.inf), (-np.inf, -np.inf, 1.0)):
        data[0, 1:3, 1, 1] = value
        (one,) = measure(np.ones((4, 5, 6), int), Image(data))
        assert (one.mean, one.lowest, one.highest) == ((value,), (lowest,), (highest,))
        assert math.isnan(one.std[0])


@pytest.mark.parametrize("dtype", [bool, np.int16, ">u2", np.uint64])
def test_labels_of_any_whole_type(dtype):
    labels = np.zeros((4, 5, 6), dtype)
    labels[1:3, 2:4, 2:4] = 1
    (one,) = measure(labels, Image(np.ones((1, 4, 5, 6), np.float32)))
    assert (one.label, one.voxels, one.mean, one.std) == (1, 8, (1.0,), (0.0,))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.zeros((4, 6), int), ["(4, 6)", "(4, 5)", "'scan'"]),
        (np.zeros((4, 5)), ["float64"]),
        (np.full((4, 5), -2), ["-2"]),
    ],
)
def test_labels_that_cannot_be_measured(labels, words):
    with pytest.raises(LabelsError) as error:
        measure(labels, Image(np.zeros((1, 4, 5)), name="scan"))
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------------------------------- the table


def parsed(rows):
    return list(csv.DictReader(io.StringIO(as_csv(rows))))


def test_units_are_in_the_names_of_columns():
    def columns(n, units, channels=1):
        labels, data = scene((6, 9, 10)[:n], channels=channels)
        return set(table(measure(labels, Image(data, None, units)))[0])

    assert {"volume_mm3", "surface_mm2", "centroid_z_mm", "mean_intensity", "first_z_voxel", "voxels_per_z_slice"} <= columns(3, "mm")
    assert {"volume_pixel3", "surface_pixel2", "centroid_x_pixel"} <= columns(3, "pixel")
    flat = columns(2, "mm", 3)
    assert {"area_mm2", "perimeter_mm", "std_intensity_green", "max_intensity_blue", "last_y_voxel"} <= flat
    assert not {"volume_mm3", "mean_intensity", "voxels_per_z_slice", "centroid_z_mm", "clicks"} & flat


def test_the_table_says_what_was_measured():
    labels, data = scene()
    measures = measure(labels, Image(data, rotated((3.0, 1.0, 0.5)), "mm"))
    for row, one in zip(parsed(table(measures, case="scan", labels="truth.nii.gz")), measures, strict=True):
        assert (row["case"], row["labels"], int(row["label"]), int(row["voxels"])) == ("scan", "truth.nii.gz", one.label, one.voxels)
        written = [float(row[name]) for name in ("volume_mm3", "surface_mm2", "centroid_z_mm", "centroid_y_mm", "centroid_x_mm")]
        np.testing.assert_allclose(written, [one.size, one.border, *one.centroid], rtol=1e-9)
        assert tuple(int(row[f"first_{axis}_voxel"]) for axis in "zyx") == one.first
        assert tuple(int(row[f"last_{axis}_voxel"]) for axis in "zyx") == one.last
        assert tuple(map(int, row["voxels_per_z_slice"].split())) == one.slices
        assert row["std_intensity"] == "" if one.voxels == 1 else float(row["std_intensity"]) == pytest.approx(one.std[0])


def test_instances_of_a_class_are_numbered_and_work_is_told_where_it_is_known():
    labels, data = scene()
    measures = measure(labels, Image(data))
    rows = table(measures, classes={1: "cell", 7: "cell", 300: "nucleus"}, work={7: Work(3, 4.25, 2), 1: Work(1, 0.5)})
    named = {row["label"]: (row["class"], row["instance"]) for row in rows}
    assert named == {1: ("cell", 1), 2: ("", 1), 4: ("", 2), 7: ("cell", 2), 300: ("nucleus", 1), 70_000: ("", 3)}
    told = {int(row["label"]): (row["clicks"], row["active_s"], row["model_version"]) for row in parsed(rows)}
    assert told[7] == ("3", "4.25", "2")
    assert told[1] == ("1", "0.5", "")
    assert told[2] == ("", "", "")


def test_a_cohort_is_its_cases_one_after_the_other():
    labels, data = scene((6, 9, 10))
    volume = table(measure(labels, Image(data, None, "mm")), case="a,b")
    picture = table(measure(labels[2], Image(data[:, 2])), case="c")
    rows = parsed([*volume, *picture])
    assert [row["case"] for row in rows] == ["a,b"] * len(volume) + ["c"] * len(picture)
    assert rows[0]["area_pixel2"] == rows[-1]["volume_mm3"] == ""
    assert float(rows[-1]["area_pixel2"]) == picture[-1]["voxels"]


# ------------------------------------------------------------------------------------------------------------------------- its unit


def tabled(spacing, unit=None, units="mm", **about):
    """The table of a scene with voxels of this size."""
    labels, data = scene((9, 20, 24)[-len(spacing) :])
    return table(measure(labels, Image(data, rotated(spacing), units)), unit=unit, **about)


def units_of(rows):
    """The units that columns are in: the ending of a name, without the power."""
    names = {name for row in rows for name in row}
    return {name.rpartition("_")[2].rstrip("23") for name in names} & {"mm", "um", "nm", "pixel"}


@pytest.mark.parametrize(
    ("spacing", "unit"),
    [
        ((5e-5, 8e-6, 8e-6), "um"),  # electron microscopy
        ((2e-3, 2.5e-4, 2.5e-4), "um"),  # confocal microscopy
        ((0.0099, 0.0099, 0.0099), "um"),
        ((0.0101, 0.0101, 0.0101), "mm"),
        ((0.12, 0.0039, 0.0112), "mm"),  # optical coherence tomography
        ((5.0, 0.7, 0.4), "mm"),
        ((2.5e-4, 2.5e-4), "um"),
        ((0.05, 0.05), "mm"),
    ],
)
def test_a_table_is_in_the_unit_in_which_people_read_such_voxels(spacing, unit):
    assert units_of(tabled(spacing)) == {unit}


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize(("unit", "per_mm"), [("mm", 1.0), ("um", 1e3), ("nm", 1e6)])
def test_another_unit_says_the_same_as_a_world_that_is_counted_in_it(n, unit, per_mm):
    labels, data = scene((9, 20, 24)[-n:])
    affine = rotated(SPACINGS["anisotropic"][-n:])
    counted = affine.copy()
    counted[:-1] *= per_mm
    for row, one in zip(
        table(measure(labels, Image(data, affine, "mm")), unit=unit), measure(labels, Image(data, counted, "mm")), strict=True
    ):
        names = ("area_{}2", "perimeter_{}") if n == 2 else ("volume_{}3", "surface_{}2")
        told = [row[name.format(unit)] for name in (*names, *(f"centroid_{axis}_{{}}" for axis in "zyx"[-n:]))]
        np.testing.assert_allclose(told, [one.size, one.border, *one.centroid], rtol=1e-9)
        assert (row["voxels"], row["mean_intensity"], row["first_x_voxel"]) == (one.voxels, pytest.approx(one.mean[0]), one.first[-1])


@pytest.mark.parametrize("there", UNITS)
def test_there_and_back_is_the_same_table(there):
    rows = tabled((5.0, 0.7, 0.4), "mm", classes={1: "10_mm2"}, work={1: Work(2, 1.5)})
    moved = in_unit(rows, there)
    assert units_of(moved) == {there}
    for before, after in zip(rows, in_unit(moved, "mm"), strict=True):
        assert list(after) == list(before)
        for name, value in before.items():
            assert after[name] == (pytest.approx(value, rel=1e-12, nan_ok=True) if isinstance(value, float) else value)


def test_a_cohort_has_one_unit_whatever_its_cases_are_in():
    stack, head = tabled(SPACINGS["nanometres"]), tabled(SPACINGS["anisotropic"])
    assert units_of([*stack, *head]) == {"um", "mm"}
    for unit, expected in ((None, "um"), ("mm", "mm"), ("nm", "nm")):
        rows = parsed(in_unit([*stack, *head], unit))
        assert units_of(rows) == {expected}
        assert all(row[f"volume_{expected}3"] and row[f"surface_{expected}2"] and row[f"centroid_z_{expected}"] for row in rows)
    sizes = [float(row["volume_um3"]) / int(row["voxels"]) for row in parsed(in_unit([*stack, *head]))]
    np.testing.assert_allclose(sizes, [3.2e-6] * len(stack) + [1.4e9] * len(head), rtol=1e-9)


def test_what_counts_pixels_has_no_other_unit():
    assert units_of(tabled((1.0, 1.0, 1.0), "nm", units="pixel")) == {"pixel"}
    assert in_unit([]) == []


def test_a_unit_that_there_is_not():
    with pytest.raises(InputError, match="'inch' arrived; expected one of mm, um, nm"):
        tabled((1.0, 1.0, 1.0), "inch")
