"""Values check what they are made of, and say in one sentence what arrived and what was expected."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_apprentice import types
from napari_apprentice.types import (
    THRESHOLD_LOGIT,
    ApprenticeError,
    Box,
    Click,
    ClickError,
    DeviceError,
    FileError,
    Image,
    ImageError,
    InputError,
    LabelsError,
    LearningReport,
    Plane,
    Prediction,
    ReadError,
    RecipeError,
    SessionError,
    WeightsError,
    WriteError,
)


def one_sentence(error: pytest.ExceptionInfo, *words: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def ramp(*shape: int, dtype: str = "int16") -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


# ---------------------------------------------------------------------------------------------------------------------- the module


def test_all_is_exact():
    own = {name for name, thing in vars(types).items() if getattr(thing, "__module__", None) == types.__name__}
    assert {name for name in own if not name.startswith("_")} | {"DEFAULT_POLICY", "PROJECT_POLICY", "THRESHOLD_LOGIT"} == set(
        types.__all__
    )


def test_the_error_tree():
    for error in (InputError, FileError, WeightsError, DeviceError, RecipeError, SessionError):
        assert issubclass(error, ApprenticeError)
    for error in (ImageError, ClickError, LabelsError):
        assert issubclass(error, InputError)
        assert issubclass(error, ValueError)
    for error in (ReadError, WriteError):
        assert issubclass(error, FileError)
        assert issubclass(error, OSError)
    assert str(ReadError("one sentence")) == "one sentence"


# ------------------------------------------------------------------------------------------------------------------------- clicks


def test_a_click_keeps_plain_ints():
    click = Click((np.int64(3), 4.0, np.float32(5)), positive=np.True_, axis=1)
    assert click == Click((3, 4, 5), True, 1)
    assert [type(v) for v in click.voxel] == [int, int, int]
    assert type(click.positive) is bool
    assert hash(click) == hash(Click((3, 4, 5), True, 1))


@pytest.mark.parametrize("voxel", [(), (1,), (1, 2, 3, 4), (0.5, 1), (1, 2, 2.25)])
def test_a_click_of_other_dimensions_or_between_voxels_is_refused(voxel):
    with pytest.raises(ClickError) as error:
        Click(voxel)
    one_sentence(error, str(voxel), "2 or 3 whole voxel coordinates")


def test_clicks_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Click((1, 2)).positive = False


@pytest.mark.parametrize(("axis", "plane", "in_plane"), [(0, (0, 7), (8, 9)), (1, (1, 8), (7, 9)), (2, (2, 9), (7, 8))])
@pytest.mark.parametrize("positive", [True, False])
def test_a_3d_click_lies_in_a_plane_across_its_axis(axis, plane, in_plane, positive):
    click = Click((7, 8, 9), positive, axis)
    assert click.plane == Plane(*plane)
    assert click.in_plane == Click(in_plane, positive)


def test_a_2d_click_has_the_one_plane_whatever_its_axis():
    for axis in (0, 1, 2):
        click = Click((8, 9), False, axis)
        assert click.plane == Plane(0, 0)
        assert click.in_plane is click


@given(voxel=st.tuples(*[st.integers(0, 3)] * 3), axis=st.integers(0, 2))
def test_the_plane_of_a_click_shows_its_voxel_where_the_2d_click_lies(voxel, axis):
    data = ramp(1, 4, 4, 4)
    click = Click(voxel, axis=axis)
    seen = Image(data).slice(click.plane).data
    assert seen[(0, *click.in_plane.voxel)] == data[(0, *voxel)]


# ------------------------------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (np.zeros((5, 7)), "(5, 7)"),
        (np.zeros((1, 2, 3, 4, 5)), "(1, 2, 3, 4, 5)"),
        (np.zeros(()), "()"),
        ([[1, 2], [3, 4]], "()"),
        (np.zeros((2, 5, 7)), "2 channels"),
        (np.zeros((5, 7, 3)), "5 channels"),
        (np.zeros((1, 0, 7)), "at least one voxel"),
        (np.zeros((1, 5, 7), complex), "complex128"),
        (np.array([[["a"]]]), "integers or real numbers"),
        (np.zeros((1, 5, 7), object), "object"),
    ],
)
def test_what_is_no_image_is_refused(data, words):
    with pytest.raises(ImageError) as error:
        Image(data)
    one_sentence(error, words, "expected")


@pytest.mark.parametrize(
    ("shape", "affine"),
    [
        ((1, 5, 7), np.eye(4)),
        ((1, 3, 5, 7), np.eye(3)),
        ((1, 5, 7), np.diag([1, 0, 1])),
        ((1, 5, 7), np.diag([1, np.nan, 1])),
        ((1, 5, 7), np.diag([1, np.inf, 1])),
        ((1, 5, 7), [[1, 1, 0], [1, 1, 0], [0, 0, 1]]),
    ],
)
def test_affines_that_are_not_invertible_or_of_another_size_are_refused(shape, affine):
    with pytest.raises(ImageError) as error:
        Image(np.zeros(shape), affine)
    one_sentence(error, "invertible", str(len(shape)))


@pytest.mark.parametrize("spacing_mm", [(40e-6, 8e-6, 8e-6), (1e-4, 65e-6, 65e-6), (1e-7, 1e-7, 1e-7), (1e4, 1e4, 1e4)])
def test_voxels_of_nanometres_are_as_invertible_as_any(spacing_mm):
    image = Image(np.zeros((1, 3, 5, 7)), np.diag([*spacing_mm, 1]))
    assert image.spacing == pytest.approx(spacing_mm)


def test_the_affine_is_a_read_only_copy():
    affine = np.diag([3, 2, 1])
    image = Image(ramp(1, 5, 7), affine)
    affine[0, 0] = 99
    assert image.affine.dtype == np.float64
    assert image.spacing == (3.0, 2.0)
    with pytest.raises(ValueError, match="read-only"):
        image.affine[0, 0] = 1


def test_without_an_affine_voxels_are_the_world():
    flat, volume = Image(ramp(1, 5, 7)), Image(ramp(3, 4, 5, 7))
    np.testing.assert_array_equal(flat.affine, np.eye(3))
    assert (flat.ndim, flat.shape, flat.axis_labels, flat.spacing, flat.units) == (2, (5, 7), ("y", "x"), (1.0, 1.0), "pixel")
    assert (volume.ndim, volume.shape, volume.axis_labels) == (3, (4, 5, 7), ("z", "y", "x"))


def test_spacing_is_that_of_voxel_axes_even_when_turned():
    turn = np.array([[0, -2, 0, 0], [5, 0, 0, 0], [0, 0, 0.5, 0], [0, 0, 0, 1]])
    assert Image(ramp(1, 4, 5, 7), turn).spacing == (5.0, 2.0, 0.5)


class Lazy:
    """An array on disk, as far as the product knows: a shape, a type, and slices of it."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.read = array, []

    shape = property(lambda self: self.array.shape)
    dtype = property(lambda self: self.array.dtype)

    def __getitem__(self, index: tuple) -> np.ndarray:
        self.read.append(index)
        return self.array[index]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_across_every_axis(channels, axis):
    data = ramp(channels, 4, 5, 7)
    image = Image(Lazy(data), np.diag([5, 3, 2, 1]))
    for index in range(data.shape[axis + 1]):
        got = image.slice(Plane(axis, index))
        np.testing.assert_array_equal(got.data, data.take(index, axis + 1))
        assert got.spacing == tuple(s for a, s in enumerate((5.0, 3.0, 2.0)) if a != axis)
        assert got.plane == Plane(axis, index)
        assert got.shape == got.data.shape[1:]
    assert all(isinstance(index[axis + 1], int) for index in image.data.read), "a slice must not read the whole volume"


def test_the_one_slice_of_a_2d_image():
    image = Image(ramp(3, 5, 7), np.diag([3, 2, 1]))
    got = image.slice(Plane(0, 0))
    np.testing.assert_array_equal(got.data, image.data)
    assert (got.spacing, got.shape) == ((3.0, 2.0), (5, 7))


def test_slice_keys_are_equal_for_equal_pixels_only():
    image, other = Image(ramp(1, 4, 5, 7)), Image(ramp(1, 4, 5, 7))
    keys = [i.slice(Plane(*p)).key for i in (image, other) for p in ((0, 1), (0, 2), (1, 1))]
    assert len(set(keys)) == 6
    assert image.slice(Plane(0, 1)).key == keys[0]


@pytest.mark.parametrize("plane", [(0, 4), (0, -1), (1, 5), (2, 7), (3, 0), (-1, 0)])
def test_planes_outside_are_refused(plane):
    with pytest.raises(ImageError) as error:
        Image(ramp(1, 4, 5, 7)).slice(Plane(*plane))
    one_sentence(error, str(plane[1]), "(4, 5, 7)")


@pytest.mark.parametrize(("bad", "counts_as"), [(np.nan, "min"), (-np.inf, "min"), (np.inf, "max")])
def test_values_that_are_not_finite_count_as_the_ends_of_those_that_are(bad, counts_as):
    data = ramp(1, 4, 5, 7, dtype="float32")
    expected = data[:, 2].copy()
    data[0, 2, 1, 1] = data[0, 2, 3, 4] = bad
    expected[0, 1, 1] = expected[0, 3, 4] = getattr(expected, counts_as)()
    given = data.copy()
    shown = Image(data, name="scan").slice(Plane(0, 2)).data
    np.testing.assert_array_equal(shown, expected)
    assert shown.dtype == data.dtype
    np.testing.assert_array_equal(data, given)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_slice_without_any_finite_value_is_refused(bad):
    data = ramp(1, 4, 5, 7, dtype="float32")
    data[0, 2] = bad
    image = Image(data, name="scan")
    with pytest.raises(ImageError) as error:
        image.slice(Plane(0, 2))
    one_sentence(error, "slice 2", "'scan'", "NaN or infinite", "expected some finite")
    assert image.slice(Plane(0, 1)).shape == (5, 7)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "bool"])
def test_a_constant_slice_is_refused(dtype):
    data = ramp(1, 4, 5, 7, dtype=dtype)
    data[0, 3] = 1
    with pytest.raises(ImageError) as error:
        Image(data, name="scan").slice(Plane(0, 3))
    one_sentence(error, "slice 3", "'scan'", "constant", str(data[0, 3, 0, 0]), "contrast")


@pytest.mark.parametrize(
    ("shape", "click", "words"),
    [
        ((1, 5, 7), Click((1, 2, 3)), "3D click"),
        ((1, 4, 5, 7), Click((1, 2)), "2D click"),
        ((1, 5, 7), Click((5, 0)), "(5, 7)"),
        ((1, 5, 7), Click((-1, 0)), "(-1, 0)"),
        ((1, 4, 5, 7), Click((0, 0, 7)), "(4, 5, 7)"),
        ((1, 4, 5, 7), Click((0, 0, 0), axis=3), "0, 1 or 2"),
        ((1, 4, 5, 7), Click((0, 0, 0), axis=-1), "0, 1 or 2"),
    ],
)
def test_clicks_outside_the_image_are_refused(shape, click, words):
    with pytest.raises(ClickError) as error:
        Image(ramp(*shape)).check_click(click)
    one_sentence(error, words)


@pytest.mark.parametrize("voxel", [None, 3, "12", (1, "2"), (1, True), (1, None), (1, np.nan), (1, np.inf), (10**400, 0.5), [[1], [3]]])
def test_a_click_at_no_voxel_is_refused(voxel):
    with pytest.raises(ClickError, match="expected 2 or 3 whole voxel coordinates"):
        Click(voxel)


@pytest.mark.parametrize("axis", [None, "z", 1.5, True])
@pytest.mark.parametrize("voxel", [(1, 2), (1, 2, 3)])
def test_a_click_across_no_axis_is_refused(voxel, axis):
    with pytest.raises(ClickError, match=f"across axis {axis} arrived; expected 0, 1 or 2"):
        Click(voxel, axis=axis)


def test_a_click_may_be_of_the_whole_numbers_of_any_library():
    assert Click(np.array([1, 2, 3]), np.True_, np.int64(2)) == Click((1.0, 2.0, 3.0), True, 2)


def test_clicks_at_the_corners_are_inside():
    image = Image(ramp(1, 4, 5, 7))
    for voxel in ((0, 0, 0), (3, 4, 6)):
        for axis in range(3):
            image.check_click(Click(voxel, axis=axis))


# --------------------------------------------------------------------------------------------------------- predictions, boxes, reports


def test_the_mask_is_strictly_above_the_threshold_inside_the_box_and_background_outside():
    logits = np.array([[THRESHOLD_LOGIT, 0.1], [-0.1, 5]], np.float32)
    prediction = Prediction(logits, Box(1, 2, 3, 4), (4, 6))
    np.testing.assert_array_equal(prediction.mask_in_box, [[False, True], [False, True]])
    assert prediction.mask.shape == (4, 6)
    assert np.argwhere(prediction.mask).tolist() == [[1, 3], [2, 3]]
    assert np.isnan(prediction.score)


@pytest.mark.parametrize("values", [bool, np.uint8, np.float32])
def test_a_prediction_from_a_mask_says_that_mask(values):
    mask = np.eye(5, 7).astype(values) * 3 if values is not bool else np.eye(5, 7, dtype=bool)
    prediction = Prediction.from_mask(mask)
    np.testing.assert_array_equal(prediction.mask, mask != 0)
    assert prediction.logits.dtype == np.float32
    assert set(np.unique(prediction.logits)) == {-4.0, 4.0}


def test_logits_of_another_shape_than_the_box_are_refused():
    with pytest.raises(InputError) as error:
        Prediction(np.zeros((2, 3), np.float32), Box(0, 0, 3, 2), (9, 9))
    one_sentence(error, "(2, 3)", "(3, 2)")


@given(st.tuples(*[st.integers(0, 5)] * 4))
def test_a_box_is_half_open(corners):
    top, left, height, width = corners
    box = Box(top, left, top + height, left + width)
    assert box.shape == (height, width)
    assert np.zeros((3, 12, 12))[(..., *box.slices)].shape == (3, height, width)


def test_a_report_of_nothing_learnt():
    report = LearningReport()
    assert (report.accepted, report.message) == (False, "")
    assert np.isnan([report.loss_before, report.loss_after]).all()
