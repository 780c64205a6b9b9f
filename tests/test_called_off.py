"""Writing labels can be called off at any moment: the old file stays whole, and nothing is left of the new one."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from napari_apprentice.blocks import BlockArray
from napari_apprentice.files import WRITABLE, object_paths, read_labels, write, write_objects
from napari_apprentice.types import Image, WriteError

RNG = np.random.default_rng(0)


class EnoughError(Exception):
    """Whoever waited does so no longer."""


class Patience:
    """Counts how often it is asked, and has enough at one of them."""

    def __init__(self, enough: float = np.inf) -> None:
        self.asked, self.enough = 0, enough

    def __call__(self) -> None:
        self.asked += 1
        if self.asked >= self.enough:
            raise EnoughError


def image_for(extension: str) -> Image:
    return Image(np.zeros((1, 300, 400) if extension == ".png" else (1, 12, 120, 130), np.uint8))


def content(folder) -> dict[str, str]:
    """Digest of every file under a folder."""
    return {str(p.relative_to(folder)): hashlib.md5(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("extension", WRITABLE)
def test_the_old_file_stays_whole_whenever_it_is_called_off(tmp_path, extension):
    image = image_for(extension)
    old, new = np.ones(image.shape, np.uint8), RNG.integers(0, 60_000, image.shape)
    path, patient = tmp_path / f"a{extension}", Patience()
    write(path, new, like=image, go_on=patient)
    np.testing.assert_array_equal(read_labels(path), new)
    write(path, old, like=image)
    before = content(tmp_path)
    for enough in sorted({1, 2, patient.asked // 2 + 1, patient.asked}):
        with pytest.raises(EnoughError):
            write(path, new, like=image, go_on=Patience(enough))
        assert content(tmp_path) == before
    with pytest.raises(EnoughError):
        write(tmp_path / f"b{extension}", new, like=image, go_on=Patience(1))
    assert content(tmp_path) == before


@pytest.mark.parametrize("extension", WRITABLE)
def test_of_many_files_none_is_there_before_all_are(tmp_path, extension):
    image = image_for(extension)
    labels, patient = RNG.integers(0, 4, image.shape), Patience()
    first, second, _ = object_paths(tmp_path / f"a{extension}", (1, 2, 3))
    write_objects(tmp_path / f"b{extension}", labels, like=image, go_on=patient)
    write(second, labels == 0, like=image)
    before = content(tmp_path)
    for enough in sorted({1, 2, *range(patient.asked // 4, patient.asked + 1, patient.asked // 4 + 1), patient.asked}):
        with pytest.raises(EnoughError):
            write_objects(tmp_path / f"a{extension}", labels, like=image, go_on=Patience(enough))
        assert content(tmp_path) == before
        assert not first.exists()
    write_objects(tmp_path / f"a{extension}", labels, like=image)
    np.testing.assert_array_equal(read_labels(second), labels == 2)


@pytest.mark.parametrize("extension", [".nii.gz", ".ome.zarr"])
def test_of_many_files_none_is_there_if_one_cannot_be_written(tmp_path, extension):
    image = image_for(extension)
    (tmp_path / f"a_2{extension}").mkdir()  # a folder of somebody else's
    (tmp_path / f"a_2{extension}" / "notes.txt").write_text("stay")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(WriteError, match="a_2"):
        write_objects(tmp_path / f"a{extension}", RNG.integers(0, 4, image.shape), like=image)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("extension", [".nii", ".nii.gz", ".tif", ".ome.tif", ".ome.zarr"])
def test_a_large_file_asks_often(tmp_path, extension):
    """Random values, which do not shrink: 16 MiB as 16 bits."""
    image, patient = Image(np.broadcast_to(np.uint8(0), (1, 32, 512, 512))), Patience()
    write(tmp_path / f"a{extension}", RNG.integers(0, 60_000, image.shape, dtype=np.uint16), like=image, go_on=patient)
    assert patient.asked >= 8


def test_labels_on_the_disk_can_be_called_off(tmp_path):
    labels = BlockArray((16, 300, 300), folder=tmp_path)
    labels[:, 10:290, 10:290] = 3
    image = Image(np.broadcast_to(np.uint8(0), (1, *labels.shape)))
    path = write(tmp_path / "a.ome.zarr", labels, like=image)
    before = content(path)
    labels[...] = 4
    with pytest.raises(EnoughError):
        write(path, labels, like=image, go_on=Patience(3))
    assert content(path) == before
    assert sorted(each.name for each in tmp_path.glob("*a.*")) == ["a.ome.zarr"]
