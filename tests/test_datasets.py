from __future__ import annotations

import shutil
import time
from collections import Counter
from operator import methodcaller

import nibabel
import numpy as np
import pytest
import SimpleITK
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from napari_apprentice import files
from napari_apprentice.datasets import ObjectRef, open_set
from napari_apprentice.legend import Legend, write_legend
from napari_apprentice.types import Image, ImageError, Plane, ReadError, RecipeError

CLASSES = '[classes]\n"1" = "rim"\n"2" = "cup"\n'
KINDS = {"id": 'objects = "id"\n', "class": f'objects = "class"\n{CLASSES}', "components": f'objects = "components"\n{CLASSES}'}


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)


def labels_2d(*rows):
    return np.array([[int(c) for c in row] for row in rows], np.uint8)


LETTERS = labels_2d(
    "11000220",
    "11000220",
    "00100000",
    "00000011",
    "22200011",
)


@pytest.fixture
def one(make_set):
    """Opens a set of one picture or volume."""

    def make(description, labels, image=None):
        return open_set(make_set(description, {"a": (noise(labels.shape) if image is None else image, labels)}))

    return make


# --- what an object is ---


def expected_objects(kind, labels):
    """A slow, plain oracle: target -> list of masks, in order of their ids."""
    if kind == "id":
        return {"object": [labels == v for v in sorted(set(labels.ravel().tolist()) - {0})]}
    masks = {"rim": [labels == 1], "cup": [labels == 2]}
    if kind == "class":
        return masks
    return {name: list(pieces(mask)) for name, (mask,) in masks.items()}


def pieces(mask):
    """8-connected pieces by flood fill, in raster order of their first pixels."""
    left = {tuple(p) for p in np.argwhere(mask)}
    while left:
        piece, front = np.zeros_like(mask), [min(left)]
        while front:
            pixel = front.pop()
            if pixel in left:
                left.remove(pixel)
                piece[pixel] = True
                front += [(pixel[0] + dr, pixel[1] + dc) for dr in (-1, 0, 1) for dc in (-1, 0, 1)]
        yield piece


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("smallest", [0, 4])
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(labels=arrays(np.uint8, (7, 9), elements=st.sampled_from([0, 0, 1, 2])))
def test_objects_are_those_of_the_oracle(make_set, kind, smallest, labels):
    if not labels.any():
        labels[:3, :3] = 1
    folder = make_set(f"min_area_px = {smallest}\n{KINDS[kind]}", {"a": (noise(labels.shape), labels)})
    labelled = open_set(folder)
    wanted = [(name, m) for name, masks in expected_objects(kind, labels).items() for m in masks if m.sum() >= max(smallest, 1)]
    if not wanted:
        with pytest.raises(RecipeError, match=f"at least {smallest} pixels"):
            labelled.objects()
        return
    found = labelled.objects()
    assert [ref.target for ref in found] == [name for name, _ in wanted]
    for ref, (_, mask) in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(labelled.truth(ref), mask)


def test_a_diagonal_touch_joins_components(one):
    found = one(KINDS["components"], LETTERS).objects(target="rim")
    assert [ref.id for ref in found] == [1, 2]  # the pixel at (2, 2) belongs to the square that it touches with a corner


def test_targets_replace_classes_by_unions(one):
    labelled = one(KINDS["class"] + "[targets]\ndisc = [1, 2]\ncup = [2]\n", LETTERS)
    assert dict(labelled.targets) == {"disc": (1, 2), "cup": (2,)}
    disc, cup = labelled.objects()
    assert (disc.target, cup.target) == ("disc", "cup")  # in the order of the file
    np.testing.assert_array_equal(labelled.truth(disc), LETTERS > 0)
    np.testing.assert_array_equal(labelled.truth(cup), LETTERS == 2)


def test_a_range_of_classes_is_one_object_for_every_value_that_is_there(one):
    labels = labels_2d("11300", "11308", "00088", "77000")
    labelled = one('objects = "class"\n[classes]\n"1-6, 8" = "vertebra"\n', labels)
    assert labelled.targets["vertebra"] == (1, 2, 3, 4, 5, 6, 8)
    assert [ref.id for ref in labelled.objects()] == [1, 3, 8]
    for ref in labelled.objects():
        np.testing.assert_array_equal(labelled.truth(ref), labels == ref.id)


# --- order ---


@pytest.fixture
def volumes(make_set):
    rng = np.random.default_rng(5)
    cases = {case: (noise((4, 6, 7)), rng.integers(0, 3, (4, 6, 7)).astype(np.uint8)) for case in ("b_T1", "a_T2", "a_T1")}
    return open_set(make_set('slice_axes = "z, y, x: slice in all three"\n' + KINDS["class"], cases))


def test_sorted_order_is_cases_slices_targets(volumes):
    found = volumes.objects()
    axes = {case: [(ref.plane.axis, ref.plane.index) for ref in found if ref.case == case] for case in ("a_T1", "a_T2", "b_T1")}
    assert [ref.case for ref in found] == sorted(ref.case for ref in found)
    assert all(planes == sorted(planes) for planes in axes.values())
    assert axes["a_T1"] == [(axis, i) for axis, size in enumerate((4, 6, 7)) for i in range(size) for _ in ("rim", "cup")]
    assert [ref.target for ref in found] == ["rim", "cup"] * (len(found) // 2)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_truth_and_slice_are_cut_across_the_plane(volumes, axis):
    ref = ObjectRef("b_T1", Plane(axis, 2), "cup", 2)
    np.testing.assert_array_equal(volumes.truth(ref), volumes.labels("b_T1").take(2, axis) == 2)
    np.testing.assert_array_equal(volumes.slice(ref).data[0], volumes.image("b_T1").data[0].take(2, axis))
    assert volumes.slice(ref).spacing == tuple(np.delete((3.0, 1.0, 1.0), axis))


def test_a_seed_permutes_the_same_objects(volumes):
    ordered = volumes.objects()
    shuffled = volumes.objects(order=7)
    assert shuffled != ordered
    assert sorted(shuffled) == sorted(ordered)
    assert volumes.objects(order=7) == shuffled
    assert volumes.objects(order=8) != shuffled
    assert shuffled == tuple(ordered[i] for i in np.random.default_rng(7).permutation(len(ordered)))


@pytest.mark.parametrize("limit", [1, 2, 5, 17, 101, 102, 1000])
def test_limit_spreads_evenly_and_keeps_the_order(volumes, limit):
    ordered, limited = volumes.objects(), volumes.objects(limit=limit)
    positions = [ordered.index(ref) for ref in limited]
    assert len(limited) == min(limit, len(ordered))
    assert positions == sorted(set(positions))
    if limit > 1:
        assert (positions[0], positions[-1]) == (0, len(ordered) - 1)
        assert np.ptp(np.diff(positions)) <= 1
    assert set(volumes.objects(limit=limit, order=3)) == set(limited)


def test_cases_and_target_choose(volumes):
    assert {ref.case for ref in volumes.objects(cases="*_T1")} == {"a_T1", "b_T1"}
    assert {ref.target for ref in volumes.objects(target="cup")} == {"cup"}


# --- images ---


def test_equal_keys_mean_equal_pixels_over_all_cases(make_set):
    """The image of a case dies with the next one, and its address in memory is used again: keys must not be made of it."""
    cases = {f"{i:02d}": (noise((5, 5), i), np.ones((5, 5), np.uint8)) for i in range(30)}
    labelled = open_set(make_set(KINDS["id"], cases))
    pixels = {}
    for _ in range(2):
        for ref in labelled.objects():
            cut = labelled.slice(ref)
            assert pixels.setdefault(cut.key, cut.data.tobytes()) == cut.data.tobytes()
    assert len(pixels) == 30


def test_only_the_current_case_stays_in_memory(make_set):
    cases = {case: (noise((5, 5)), np.ones((5, 5), np.uint8)) for case in "ab"}
    labelled = open_set(make_set(KINDS["id"], cases))
    assert labelled.image("a") is labelled.image("a")
    first = labelled.image("a")
    labelled.image("b")
    assert labelled.image("a") is not first


def test_a_constant_slice_is_refused_by_the_image(one):
    labelled = one(KINDS["id"], LETTERS, image=np.full(LETTERS.shape, 7, np.uint8))
    with pytest.raises(ImageError, match="constant"):
        labelled.slice(ObjectRef("a", Plane(0, 0), "object", 1))
    with pytest.raises(RecipeError, match=r"no object of .* in a slice with some contrast"):
        labelled.objects()


def test_objects_in_slices_without_contrast_are_left_out(one):
    image = noise((4, 6, 7)).astype(np.float32)
    image[1], image[2] = 7, np.nan
    labelled = one(KINDS["id"], np.ones((4, 6, 7), np.uint8), image)
    assert [ref.plane for ref in labelled.objects()] == [Plane(0, 0), Plane(0, 3)]
    for ref in labelled.objects():
        labelled.slice(ref)


# --- what is wrong with a folder ---


@pytest.mark.parametrize(
    ("description", "sentence"),
    [
        ('objects = "blobs"', "objects = 'blobs' arrived"),
        ("", "objects = None arrived"),
        ("objects = ", "cannot be read"),
        ('objects = "class"', "no classes and no targets"),
        ('objects = "class"\n[classes]\n"1-" = "x"', 'class "1-" arrived'),
        ('objects = "class"\n[classes]\n"6-1" = "x"', 'class "6-1" arrived'),
        ('objects = "class"\nclasses = "x"', r"classes = 'x' arrived.*expected a table \[classes\]"),
        ('objects = "class"\nclasses = ["x"]', r"classes = \['x'\] arrived"),
        ('objects = "class"\ntargets = 3', r"targets = 3 arrived.*expected a table \[targets\]"),
        ('objects = "class"\n[targets]\nx = 3', "target x = 3 arrived"),
        ('objects = "class"\n[targets]\nx = [0]', r"target x = \[0\] arrived"),
        ('objects = "id"\nslice_axes = "t"', "slice_axes = 't' arrived"),
        ('objects = "id"\nmin_area_px = -1', "min_area_px = -1 arrived"),
    ],
)
def test_a_wrong_description_is_told(make_set, description, sentence):
    folder = make_set(description, {"a": (noise((5, 8)), LETTERS)})
    with pytest.raises(RecipeError, match=sentence):
        open_set(folder)


def test_a_description_may_begin_with_a_byte_order_mark(make_set):
    folder = make_set(KINDS["id"], {"a": (noise((5, 8)), LETTERS)})
    (folder / "dataset.toml").write_text(KINDS["id"], "utf-8-sig")
    assert open_set(folder).objects_are == "id"


def test_missing_parts_are_told(make_set, tmp_path):
    with pytest.raises(RecipeError, match=r"nowhere arrived as a data set; expected a folder"):
        open_set(tmp_path / "nowhere")
    folder = make_set(KINDS["id"], {case: (noise((5, 8)), LETTERS) for case in "abc"})
    (folder / "labels" / "b.png").unlink()
    with pytest.raises(RecipeError, match=r"b\.png has no label map \(1 have none\)"):
        open_set(folder)
    shutil.rmtree(folder / "images")
    with pytest.raises(RecipeError, match="holds no image"):
        open_set(folder)


def test_two_files_of_one_case_are_told(make_set):
    folder = make_set(KINDS["id"], {"a": (noise((5, 8)), LETTERS)})
    shutil.copy(folder / "images" / "a.png", folder / "images" / "a.jpg")
    with pytest.raises(RecipeError, match=r"a\.jpg and a\.png arrived"):
        open_set(folder)


def test_labels_of_another_shape_are_told(one):
    labelled = one(KINDS["id"], LETTERS, image=noise((6, 6)))
    with pytest.raises(ReadError, match=r"case 'a' of set cannot be used: 'a\.png' has shape \(5, 8\); expected \(6, 6\)"):
        labelled.image("a")


def test_labels_that_lie_elsewhere_are_told_before_the_work(make_set):
    """They are stored mirrored, and say so: a correct file, whose voxels are not those of the image."""
    labels = np.zeros((4, 6, 7), np.uint8)
    labels[:, 1:3, 1:3] = 1
    folder = make_set(KINDS["id"], {"a": (noise(labels.shape), labels)})
    mirrored = np.diag([-1.0, 1.0, 3.0, 1.0])
    mirrored[0, 3] = 6
    nibabel.save(nibabel.Nifti1Image(labels[..., ::-1].T, mirrored), folder / "labels" / "a.nii.gz")
    for ask in (methodcaller("objects"), methodcaller("image", "a"), methodcaller("labels", "a")):
        with pytest.raises(ReadError, match=r"case 'a' of set cannot be used: .* lies up to 6 voxels away .*expected the same grid"):
            ask(open_set(folder))


def test_labels_that_say_of_no_place_are_compared_by_their_shape(make_set):
    folder = make_set(KINDS["id"], {"a": (noise((4, 6, 7)), np.ones((4, 6, 7), np.uint8))})
    (folder / "labels" / "a.nii.gz").unlink()
    tifffile.imwrite(folder / "labels" / "a.tif", np.ones((4, 6, 7), np.uint8), photometric="minisblack")
    assert len(open_set(folder).objects()) == 4


@pytest.mark.parametrize(("of_image", "of_labels"), [(".mhd", ".mhd"), (".ome.zarr", ".ome.zarr"), (".NRRD", ".ome.tif")])
def test_all_formats_can_be_in_a_set(tmp_path, of_image, of_labels):
    for kind, ending, values in (("images", of_image, noise((4, 6, 7))), ("labels", of_labels, np.ones((4, 6, 7), np.uint8))):
        (tmp_path / kind).mkdir()
        path = tmp_path / kind / f"v.1{ending}"
        if ending == ".mhd":
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), path)
            assert path.with_suffix(".raw").is_file()
        else:
            files.save_image(path, Image(values[None]))
    (tmp_path / "dataset.toml").write_text(KINDS["id"])
    labelled = open_set(tmp_path)
    assert labelled.cases == ("v.1",)
    assert len(labelled.objects()) == 4


def test_what_is_no_image_is_passed_over(make_set):
    folder = make_set(KINDS["id"], {"a": (noise((5, 8)), LETTERS)})
    write_legend(folder / "labels" / "a.tsv", Legend().naming(1, "disk"))
    for name in ("Thumbs.db", "desktop.ini", ".a.png", "b"):
        (folder / "images" / name).write_text("x")
    (folder / "images" / "older").mkdir()
    assert open_set(folder).cases == ("a",)


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({"cases": "x*"}, "no case of set matches"),
        ({"target": "disc"}, "target 'disc' was asked for; set has rim, cup"),
        ({"limit": 0}, "a limit of 0"),
    ],
)
def test_a_wish_that_cannot_be_met_is_told(one, wish, sentence):
    with pytest.raises(RecipeError, match=sentence):
        one(KINDS["class"], LETTERS).objects(**wish)


def test_unknown_cases_and_objects_are_told(one):
    labelled = one(KINDS["class"], LETTERS)
    with pytest.raises(RecipeError, match="case 'z' was asked for"):
        labelled.image("z")
    with pytest.raises(RecipeError, match="no 'rim' with id 9"):
        labelled.truth(ObjectRef("a", Plane(0, 0), "rim", 9))


# --- real sets ---


def test_real_sets_are_listed_within_seconds(data_folder):
    folders = sorted(path.parent for path in data_folder.rglob("dataset.toml"))
    assert folders
    for folder in folders:
        labelled = open_set(folder)
        began = time.process_time()
        found = labelled.objects()
        assert time.process_time() - began < 5
        assert set(Counter(ref.target for ref in found)) == set(labelled.targets)
        for ref in labelled.objects(limit=5):
            truth = labelled.truth(ref)
            assert truth.sum() >= max(labelled.min_area_px, 1)
            assert truth.shape == labelled.slice(ref).shape
            if labelled.objects_are == "components":
                assert ndimage.label(truth, np.ones((3, 3)))[1] == 1
