"""Laws of looking for the objects of accepted cases: found where they are, however the image is moved or stored."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from napari_apprentice.examples import Example, find
from napari_apprentice.types import Image, SessionError


def scene(shape=(90, 110), centres=((35, 40), (60, 75)), seed=0):
    """A noisy picture with a bright and a dark disk, and their labels."""
    rng = np.random.default_rng(seed)
    picture = ndimage.gaussian_filter(rng.standard_normal(shape), 2) * 2
    labels = np.zeros(shape, np.uint8)
    rows, cols = np.indices(shape)
    for label, (row, col) in enumerate(centres, start=1):
        labels[(rows - row) ** 2 + (cols - col) ** 2 <= 7**2] = label
    return (picture + 4.0 * (labels == 1) - 3.0 * (labels == 2)).astype(np.float32), labels


def ball(centre=(12, 20, 24), shape=(24, 40, 48), seed=0):
    """A volume with a bright ball in a brighter body."""
    rng = np.random.default_rng(seed)
    where = np.indices(shape)
    body = sum(((w - s / 2) / (0.4 * s)) ** 2 for w, s in zip(where, shape, strict=True)) <= 1
    labels = (sum((w - c) ** 2 for w, c in zip(where, centre, strict=True)) <= 36).astype(np.uint8)
    return (rng.standard_normal(shape) * 0.3 + 3 * body + 4 * labels).astype(np.float32), labels


def hits(found, labels):
    return [bool(labels[click.voxel] == label) for label, click in found.clicks]


def test_objects_are_found_where_they_are():
    picture, labels = scene()
    found = find(Image(picture[None]), [Example("itself", Image(picture[None]), labels)])
    assert [label for label, _ in found.clicks] == [1, 2]
    assert hits(found, labels) == [True, True]
    assert all(click.positive for _, click in found.clicks)
    assert min(found.likeness.values()) > 0.95
    assert found.example == "itself"
    assert found.warnings == ()


@pytest.mark.parametrize("moved", [(0, 0), (8, -12), (-20, 25)])
def test_objects_are_found_by_how_they_look_wherever_they_are(moved):
    picture, labels = scene()
    there = tuple((row + moved[0], col + moved[1]) for row, col in ((35, 40), (60, 75)))
    other, truth = scene(centres=there, seed=1)
    assert hits(find(Image(other[None]), [Example("a", Image(picture[None]), labels)]), truth) == [True, True]


def test_how_a_volume_is_stored_does_not_matter():
    volume, labels = ball((9, 16, 18))
    spacing = np.diag([3.0, 1.0, 1.0, 1.0])
    other, truth = ball((9, 16, 18), seed=1)
    flipped = np.diag([-3.0, 1.0, -1.0, 1.0])
    image = Image(other[None, ::-1, :, ::-1], flipped, "mm")
    found = find(image, [Example("a", Image(volume[None], spacing, "mm"), labels)])
    assert hits(found, truth[::-1, :, ::-1]) == [True, True, True]


@pytest.mark.parametrize("degrees", [-20, 10, 30])
def test_a_slab_may_be_tilted(degrees):
    """It reaches farther along the world axes then, but is no larger."""
    volume, labels = ball((4, 32, 36), (9, 64, 72))
    spacing = np.diag([2.0, 3.0, 3.0, 1.0])
    turn = np.eye(4)
    turn[:2, :2] = Rotation.from_euler("z", degrees, degrees=True).as_matrix()[:2, :2]
    found = find(Image(volume[None], turn @ spacing, "mm"), [Example("a", Image(volume[None], spacing, "mm"), labels)])
    assert hits(found, labels)
    assert all(hits(found, labels))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_is_clicked_in_three_slices_across_the_axis(axis):
    volume, labels = ball()
    found = find(Image(volume[None]), [Example("a", Image(volume[None]), labels)], axis)
    assert hits(found, labels) == [True, True, True]
    assert {click.axis for _, click in found.clicks} == {axis}
    assert len({click.voxel[axis] for _, click in found.clicks}) == 3


def test_a_volume_is_clicked_in_all_slices_of_an_object_where_nothing_carries_it():
    volume, labels = ball()
    found = find(Image(volume[None]), [Example("a", Image(volume[None]), labels)], in_all=True)
    assert all(hits(found, labels))
    assert [click.voxel[0] for _, click in found.clicks] == np.flatnonzero(labels.any((1, 2))).tolist()


def test_a_large_image_is_looked_at_in_a_coarse_copy():
    picture, labels = scene((90, 110))
    large, truth = np.kron(picture, np.ones((6, 6), np.float32)), np.kron(labels, np.ones((6, 6), np.uint8))
    affine = np.diag([1 / 6, 1 / 6, 1.0])
    found = find(Image(large[None], affine, "mm"), [Example("a", Image(picture[None], units="mm"), labels)])
    assert hits(found, truth) == [True, True]


def test_of_several_examples_the_one_that_looks_most_alike_counts():
    picture, labels = scene()
    other = np.random.default_rng(5).standard_normal(picture.shape).astype(np.float32)
    examples = [Example("noise", Image(other[None]), labels), Example("alike", Image(picture[None]), labels)]
    assert find(Image(picture[None]), examples).example == "alike"


def test_what_looks_like_nothing_of_the_kind_is_doubted():
    picture, labels = scene()
    other = np.random.default_rng(5).standard_normal(picture.shape).astype(np.float32)
    found = find(Image(other[None]), [Example("a", Image(picture[None]), labels)])
    assert max(found.likeness.values()) < 0.4
    assert len(found.warnings) == 2


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (Image(np.zeros((1, 8, 90, 110))), "2 axes"),
        (Image(np.zeros((1, 90, 110)), units="mm"), "in pixel"),
        (Image(np.zeros((1, 90, 250))), r"factor of 2\.3"),
    ],
)
def test_what_cannot_be_laid_over_each_other_is_refused(image, said):
    picture, labels = scene()
    with pytest.raises(SessionError, match=said) as refused:
        find(image, [Example("first", Image(picture[None]), labels)])
    assert "first: " in str(refused.value)
    assert "expected a click file" in str(refused.value)


def test_an_example_without_objects_says_nothing():
    picture, labels = scene()
    with pytest.raises(SessionError, match="nothing is labelled"):
        find(Image(picture[None]), [Example("a", Image(picture[None]), np.zeros_like(labels))])


@pytest.mark.parametrize("odd", [np.inf, -np.inf, np.nan])
def test_voxels_without_a_number_do_not_matter(odd):
    picture, labels = scene()
    spoilt = 1000 + picture.astype(np.float64)
    spoilt[:2, :3] = odd
    for image, example in ((spoilt, 1000 + picture), (1000 + picture, spoilt), (spoilt, spoilt)):
        found = find(Image(image[None]), [Example("itself", Image(example[None]), labels)])
        assert hits(found, labels) == [True, True]
        assert min(found.likeness.values()) > 0.9


def test_constant_images_are_no_fault():
    picture, labels = scene()
    found = find(Image(np.ones_like(picture)[None]), [Example("a", Image(picture[None]), labels)])
    assert len(found.clicks) == 2
    assert len(found.warnings) == 2
