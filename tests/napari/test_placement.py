from __future__ import annotations

import dask.array
import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Image as ImageLayer
from napari.layers import Labels

from napari_apprentice._napari.contributions import image_layer
from napari_apprentice._napari.placement import (
    METADATA_KEY,
    apart,
    hidden_axis,
    image_of,
    in_its_world,
    lacks_spacing,
    same_placement,
    show_plane,
    shown_plane,
    shown_straight,
    standing_image,
    state_spacing,
    straighten,
    time_point,
)
from napari_apprentice.types import Image, ImageError, Plane


def as_layer(image: Image) -> ImageLayer:
    data, arguments, _ = image_layer(image)
    return ImageLayer(data, **arguments)


def rotation(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def test_an_axis_aligned_image_stands_at_its_true_place(volume):
    layer = as_layer(volume)
    for voxel in [(0, 0, 0), (3, 20, 10), (7, 39, 49)]:
        world = volume.affine @ [*voxel, 1]
        np.testing.assert_allclose(layer.data_to_world(voxel), world[:-1])
    assert not shown_straight(volume)
    assert [str(unit) for unit in layer.units] == ["millimeter"] * 3
    assert layer.axis_labels == ("z", "y", "x")


def test_a_rotated_2d_image_stands_at_its_true_place():
    affine = np.eye(3)
    affine[:2, :2] = rotation(30)[1:, 1:] * 0.7
    affine[:2, 2] = 5, -3
    layer = as_layer(Image(np.arange(20.0).reshape(1, 4, 5), affine, "mm"))
    np.testing.assert_allclose(layer.data_to_world((3, 2)), (affine @ [3, 2, 1])[:2])


@pytest.mark.parametrize("degrees", [9.0, -30.0, 90.0, 180.0])
def test_an_oblique_volume_is_shown_straight_with_its_centre_and_spacing(degrees):
    affine = np.eye(4)
    affine[:3, :3] = rotation(degrees) @ np.diag([2.2, -1.9, 2.0])
    affine[:3, 3] = 7, -35, 118
    image = Image(np.random.default_rng(0).normal(size=(1, 5, 6, 7)), affine, "mm")
    layer = as_layer(image)
    np.testing.assert_allclose(np.abs(layer.scale), image.spacing)
    centre = (np.array(image.shape) - 1) / 2
    np.testing.assert_allclose(layer.data_to_world(centre), (affine @ [*centre, 1])[:3])
    assert shown_straight(image) == (degrees != 180.0)  # half a turn about an axis only flips the two others
    np.testing.assert_array_equal(image_of(layer).affine, affine)


def oblique_layer(viewer: ViewerModel, *degrees: float, **arguments) -> ImageLayer:
    """A layer that somebody else put obliquely into the world; all of its slices differ."""
    place = {"rotate": degrees, "scale": (2, -0.5, 0.6), "translate": (5, -7, 11), "units": ("um",) * 3}
    return viewer.add_image(np.random.default_rng(0).normal(size=(9, 20, 30)), **(place | arguments))


@pytest.mark.filterwarnings("ignore:Non-orthogonal slicing")
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
@pytest.mark.parametrize("degrees", [(0, 0, 0), (3, 0, 0), (0, 10, -25), (20, -35, 11)])
def test_the_plane_that_is_shown_is_the_one_that_napari_slices(degrees, order):
    viewer = ViewerModel()
    layer = oblique_layer(viewer, *degrees)
    viewer.add_image(np.zeros((2, 3, 4, 5)))  # the volume is in the last three axes of the world
    viewer.dims.order = (0, *(axis + 1 for axis in order))
    hidden, slices = order[0] + 1, np.moveaxis(layer.data, order[0], 0)
    first, last, _ = viewer.dims.range[hidden]
    for place in np.linspace(first, last, 9):  # where layers stand oblique, the slider does not reach all of their slices
        viewer.dims.set_point(hidden, place)
        plane, shown = shown_plane(viewer.dims, layer), np.squeeze(layer._slice.image.raw)
        if 0 <= plane.index < len(slices):
            np.testing.assert_array_equal(shown, slices[plane.index])
            viewer.dims.set_point(hidden, first)
            show_plane(viewer.dims, layer, plane)
            np.testing.assert_array_equal(np.squeeze(layer._slice.image.raw), shown)


@pytest.mark.filterwarnings("ignore:Non-orthogonal slicing")
@pytest.mark.parametrize("degrees", [(3, 0, 0), (0, 10, -25), (20, -35, 11), (90, 0, 0)])
@pytest.mark.parametrize("carried", ["rotate", "affine"])
def test_a_foreign_volume_that_stands_oblique_can_be_shown_straight(degrees, carried):
    viewer = ViewerModel()
    layer = oblique_layer(viewer, *degrees)
    if carried == "affine":
        affine = np.linalg.inv(layer._data_to_world.inverse.affine_matrix)
        layer = oblique_layer(viewer, affine=affine, rotate=None, scale=None, translate=None)
    true, centre = standing_image(layer), (np.array(layer.data.shape) - 1) / 2
    labels = viewer.add_labels(np.zeros(layer.data.shape, int), **same_placement(layer))
    elsewhere = viewer.add_labels(np.zeros(layer.data.shape, int))
    stood = layer.data_to_world(centre)
    assert straighten(layer, viewer.layers)
    np.testing.assert_allclose(np.abs(layer.scale), (2, 0.5, 0.6))
    np.testing.assert_allclose(layer.data_to_world(centre), stood)
    straight = standing_image(layer).affine[:3, :3]
    np.testing.assert_allclose(straight, np.diag(np.diag(straight)), atol=1e-12)
    assert [str(unit) for unit in layer.units] == ["micrometer"] * 3
    for each in (layer, labels):
        np.testing.assert_allclose(image_of(each).affine, true.affine)
    assert apart(labels, layer) is None
    np.testing.assert_allclose(labels.data_to_world((1, 2, 3)), layer.data_to_world((1, 2, 3)))
    np.testing.assert_array_equal(elsewhere.data_to_world((1, 2, 3)), (1, 2, 3))
    assert not straighten(layer, viewer.layers)


def test_what_stands_straight_stays_where_it_is(volume, photograph):
    for image in (volume, photograph):
        layer = as_layer(image)
        layer.translate = np.add(layer.translate, 3)
        before = standing_image(layer).affine
        assert not straighten(layer)
        np.testing.assert_array_equal(standing_image(layer).affine, before)
    turned = ImageLayer(np.zeros((4, 5)), rotate=30)
    assert not straighten(turned)
    assert METADATA_KEY not in turned.metadata


@pytest.mark.filterwarnings("ignore:Non-orthogonal slicing")
def test_a_spacing_can_be_stated_of_a_volume_that_stands_oblique():
    viewer = ViewerModel()
    layer = oblique_layer(viewer, 0, 10, -25, scale=(1, 1, 1), units=("pixel",) * 3)
    before = image_of(layer)
    state_spacing(layer, (3.0, 0.4, 0.5))
    np.testing.assert_allclose(image_of(layer).spacing, (3.0, 0.4, 0.5))
    np.testing.assert_allclose(image_of(layer).affine[:3, :3], before.affine[:3, :3] * (3.0, 0.4, 0.5))
    np.testing.assert_allclose(layer.scale, (3.0, 0.4, 0.5))
    assert not straighten(layer)


def test_the_plane_is_the_one_that_is_shown_half_way_between_two_as_well():
    numbers = np.broadcast_to(np.arange(12.0)[:, None, None], (12, 4, 5))
    viewer = ViewerModel()
    coarse = viewer.add_image(numbers, scale=(-0.6, 1, 1), translate=(7.3, 0, 0), units=("mm",) * 3)
    viewer.add_image(np.zeros((40, 4, 5)), scale=(0.3, 1, 1), translate=(0.7, 0, 0), units=("mm",) * 3)
    for step in range(int(viewer.dims.nsteps[0])):
        viewer.dims.set_current_step(0, step)
        place = (viewer.dims.point[0], 1.0, 1.0)
        if 0 <= (plane := shown_plane(viewer.dims, coarse)).index < 12:
            assert coarse.get_value(place, world=True) == plane.index


def test_reading_a_layer_back_gives_the_very_image(volume, photograph):
    for image in (volume, photograph):
        assert image_of(as_layer(image)) is image


def test_what_a_layer_shows_counts_not_what_it_came_with(volume, photograph):
    for image in (volume, photograph):
        layer = as_layer(image)
        layer.data = layer.data // 2
        shown = image_of(layer)
        np.testing.assert_array_equal(shown.data, image.data // 2)
        np.testing.assert_array_equal(shown.affine, image.affine)
        assert (shown.units, shown.path) == (image.units, image.path)
    flipped = as_layer(volume)
    flipped.data = flipped.data[:, ::-1]
    np.testing.assert_array_equal(image_of(flipped).data, volume.data[:, :, ::-1])
    colours = as_layer(photograph)
    green = ImageLayer(colours.data[..., 1], name="green", metadata=colours.metadata)  # as napari splits them
    np.testing.assert_array_equal(image_of(green).data, photograph.data[1:2])
    assert image_of(green).name == "green"


@pytest.mark.parametrize("degrees", [0.0, 9.0, 90.0])
def test_a_scale_that_somebody_gave_the_layer_counts_and_its_axes_stay(degrees):
    affine = np.eye(4)
    affine[:3, :3] = rotation(degrees) @ np.diag([2.2, -1.9, 2.0])
    affine[:3, 3] = 7, -35, 118
    image = Image(np.random.default_rng(0).normal(size=(1, 5, 6, 7)), affine, "mm")
    layer = as_layer(image)
    layer.scale = layer.scale * (3, 1, 0.5)
    found = image_of(layer)
    np.testing.assert_allclose(found.spacing, np.multiply(image.spacing, (3, 1, 0.5)))
    np.testing.assert_allclose(found.affine[:3, :3] / found.spacing, affine[:3, :3] / image.spacing, atol=1e-12)
    np.testing.assert_allclose(np.linalg.solve(found.affine, [0, 0, 0, 1]), np.linalg.solve(affine, [0, 0, 0, 1]))  # the origin's voxel
    assert found.data is image.data
    layer.scale = layer.scale / (3, 1, 0.5)
    assert image_of(layer) is image


def test_units_that_somebody_gave_the_layer_count_where_the_file_states_none(photograph):
    layer = as_layer(photograph)
    layer.scale, layer.units = (2, 2), ("um", "um")
    found = image_of(layer)
    assert found.units == "mm"
    np.testing.assert_allclose(found.spacing, (0.002, 0.002))
    in_mm = Image(np.random.default_rng(0).normal(size=(1, 5, 6, 7)), np.diag([2, 0.5, 0.7, 1]), "mm")
    counting = as_layer(in_mm)
    counting.units, counting.scale = ("pixel",) * 3, (1, 1, 1)
    assert image_of(counting) is in_mm  # pixels are no millimetres
    volume = as_layer(Image(np.random.default_rng(0).normal(size=(1, 5, 6, 7))))
    assert lacks_spacing(volume)
    volume.scale, volume.units = (6, 2, 2), ("mm",) * 3
    assert not lacks_spacing(volume)


def test_an_image_carried_by_a_layer_of_another_shape_is_not_believed(volume):
    layer = as_layer(volume)
    layer.data = layer.data[2:]
    assert image_of(layer).shape == (6, 40, 50)


@pytest.mark.filterwarnings("ignore:Non-orthogonal slicing")
def test_a_foreign_layer_is_taken_as_it_stands():
    layer = ImageLayer(
        np.zeros((4, 5, 6)), scale=(3, 2, 1), translate=(1, 2, 3), rotate=[20, 0, 0], units=("um", "um", "um"), name="foreign"
    )
    image = image_of(layer)
    assert (image.units, image.name, image.path) == ("mm", "foreign", None)
    for voxel in np.ndindex(2, 2, 2):
        np.testing.assert_allclose((image.affine @ [*voxel, 1])[:3] * 1000, layer.data_to_world(voxel))


def test_a_layer_without_length_units_counts_pixels():
    image = image_of(ImageLayer(np.zeros((4, 5)), scale=(2, 2)))
    assert image.units == "pixel"
    np.testing.assert_array_equal(image.affine, np.diag([2, 2, 1]))


def test_colours_come_first_and_alpha_goes():
    colours = np.random.default_rng(0).integers(0, 255, (6, 7, 4)).astype(np.uint8)
    np.testing.assert_array_equal(image_of(ImageLayer(colours, rgb=True)).data, np.moveaxis(colours[..., :3], -1, 0))


def test_lazy_arrays_stay_lazy_and_multiscale_means_full_resolution():
    lazy = dask.array.ones((8, 40, 50), chunks=10)
    assert isinstance(image_of(ImageLayer(lazy)).data, dask.array.Array)
    pyramid = [np.ones((40, 50)), np.ones((20, 25))]
    assert image_of(ImageLayer(pyramid, multiscale=True)).shape == (40, 50)


def test_zarr_arrays_can_be_used():
    zarr = pytest.importorskip("zarr")
    array = zarr.array(np.arange(24.0).reshape(4, 6))
    np.testing.assert_array_equal(np.asarray(image_of(ImageLayer(array)).data), np.arange(24.0).reshape(1, 4, 6))


def test_a_series_is_refused_with_one_sentence():
    with pytest.raises(ImageError, match=r"has 4 axes .* expected a 2D image or a 3D volume"):
        image_of(ImageLayer(np.zeros((2, 3, 4, 5)), name="movie"))


@pytest.mark.parametrize("seed", range(4))
def test_a_time_point_of_a_foreign_layer_stays_where_it_stood(seed):
    """Whatever scale, turn, shear and affine put it there, also one that moves with the time."""
    rng = np.random.default_rng(seed)
    rotate, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    affine = np.eye(5)
    affine[1:-1, :] = rng.normal(size=(3, 5)) if seed else affine[1:-1, :]
    turned = np.eye(4)
    turned[1:, 1:] = rotate if seed > 1 else np.eye(3)
    shear = np.eye(4)
    shear[1, 2:] = (0.3, -0.2) if seed == 3 else 0.0
    place = {"scale": (2.0, *rng.uniform(0.5, 3, 3)), "translate": rng.normal(size=4), "affine": affine, "rotate": turned, "shear": shear}
    series = ImageLayer(rng.random((3, 4, 5, 6)), units=("second", "mm", "mm", "mm"), axis_labels=("t", "z", "y", "x"), **place)
    data, arguments = time_point(series, 2)
    taken = ImageLayer(data, **arguments)
    assert np.array_equal(taken.data, series.data[2])
    assert (taken.units, taken.axis_labels) == (series.units[1:], series.axis_labels[1:])
    for voxel in rng.uniform(0, 5, (8, 3)):
        assert np.allclose(taken.data_to_world(voxel), np.asarray(series.data_to_world((2, *voxel)))[1:])
    if not seed:  # what napari shows as numbers stays numbers
        assert np.array_equal(taken.scale, series.scale[1:])
        assert np.array_equal(taken.translate, series.translate[1:])


def test_another_layer_stands_in_the_same_place(volume):
    layer = as_layer(volume)
    labels = Labels(np.zeros(volume.shape, np.uint8), **same_placement(layer))
    np.testing.assert_allclose(labels.data_to_world((1, 2, 3)), layer.data_to_world((1, 2, 3)))
    assert (labels.units, labels.axis_labels) == (layer.units, layer.axis_labels)
    np.testing.assert_allclose(standing_image(labels).affine, volume.affine)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2, 0)])
def test_the_hidden_axis_is_the_first_of_the_order(order, volume):
    viewer = ViewerModel()
    viewer.add_layer(as_layer(volume))
    viewer.dims.order = order
    assert hidden_axis(viewer.dims, 3) == order[0]
    viewer.dims.ndisplay = 3
    assert hidden_axis(viewer.dims, 3) is None


def test_a_photograph_beside_a_volume_is_seen_only_where_its_plane_is_shown(volume, photograph):
    viewer = ViewerModel()
    viewer.add_layer(as_layer(volume))
    viewer.add_layer(as_layer(photograph))
    assert hidden_axis(viewer.dims, 2) == 0
    viewer.dims.order = (1, 0, 2)
    assert hidden_axis(viewer.dims, 2) is None


def test_the_key_under_which_the_image_travels_is_not_changed_lightly(volume):
    assert as_layer(volume).metadata == {METADATA_KEY: volume}
    assert METADATA_KEY == "napari-apprentice"


def two_units() -> tuple[ViewerModel, ImageLayer]:
    """A viewer that shows a stack of another program in µm beside an image in mm."""
    viewer = ViewerModel()
    layer = viewer.add_image(np.random.default_rng(0).normal(size=(8, 40, 50)), scale=(3, 0.5, 0.5), translate=(6, 0, 0), units=("mm",) * 3)
    viewer.add_image(np.zeros((8, 40, 50)), scale=(3000, 500, 500), units=("um",) * 3, visible=False)
    return viewer, layer


@pytest.mark.parametrize("index", [0, 3, 7])
def test_layers_of_two_units_show_the_slice_that_is_asked_for(index):
    viewer, layer = two_units()
    show_plane(viewer.dims, layer, Plane(0, index))
    assert shown_plane(viewer.dims, layer) == Plane(0, index)
    layer.refresh()
    np.testing.assert_array_equal(layer._slice.image.raw, layer.data[index])


def test_a_place_in_a_viewer_of_two_units_is_the_voxel_that_is_there():
    viewer, layer = two_units()
    in_mm = np.asarray(layer.data_to_world((3, 20, 10)))
    shared = float((1 * layer.units[0]).to(viewer.dims.units[0]).magnitude) if getattr(viewer.dims, "units", None) else 1.0
    np.testing.assert_allclose(layer.world_to_data(in_its_world(layer, tuple(in_mm * shared), viewer.dims)), (3, 20, 10))


@pytest.mark.parametrize("scale", [3, 3.5])
def test_labels_in_other_units_lie_where_they_lie(scale):
    image = ImageLayer(np.zeros((8, 40, 50)), scale=(3000, 500, 500), units=("um",) * 3)
    labels = Labels(np.zeros((8, 40, 50), np.uint8), scale=(scale, 0.5, 0.5), units=("mm",) * 3)
    assert (apart(labels, image) is None) == (apart(image, labels) is None) == (scale == 3)
