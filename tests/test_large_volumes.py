"""What does not fit into memory works as what does: the same code on small volumes, with the limits lowered."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
import zarr

from napari_apprentice import blocks, labelmap, lazy
from napari_apprentice.blocks import BlockArray
from napari_apprentice.fakes import DiskSegmenter, FakePolicy, FakeStore
from napari_apprentice.files import labels_path, read, read_labels, save_image, write
from napari_apprentice.geometry import affine_from_spacing
from napari_apprentice.journal import Journal, read_journal, replay_labels
from napari_apprentice.labelmap import LabelMap
from napari_apprentice.lazy import LazyArray
from napari_apprentice.session import Session, resume
from napari_apprentice.types import Click, Image, LabelsError, Plane, ReadError, WriteError

SHAPE = (9, 40, 33)
SPACING = affine_from_spacing((2.0, 0.5, 0.25), origin=(-7.0, 3.5, 11.0))
OBLIQUE = np.array([[1.9, 0.1, 0.0, -31.0], [-0.3, 0.45, 0.08, 12.5], [0.2, -0.1, -0.24, 7.25], [0, 0, 0, 1.0]])


@pytest.fixture
def on_disk(monkeypatch):
    """From now on nothing is small enough for memory."""

    def lower():
        monkeypatch.setattr(blocks, "LARGE_VOXELS", 0)
        monkeypatch.setattr(blocks, "BLOCK", (2, 16, 16))
        monkeypatch.setattr(blocks, "_CACHE_BYTES", 2000)
        monkeypatch.setattr(lazy, "LARGE_BYTES", 0)
        monkeypatch.setattr(labelmap, "_TILE_VOXELS", 100)

    return lower


def phantom(dtype=np.uint8, affine=SPACING, units="mm") -> Image:
    values = (np.random.default_rng(0).random((1, *SHAPE)) * 200).astype(dtype)
    return Image(values, affine, units, "phantom")


def one_sentence(error, *words):
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message, f"{word!r} is not in {message!r}"


# ------------------------------------------------------------------------------------------------------------------------ sessions


def known_labels():
    labels = np.zeros(SHAPE, np.uint16)
    labels[2:5, 3:12, 4:9], labels[6, 30:38, 20:31] = 3, 300
    return labels


DAY = [
    lambda s: s.add(Click((4, 20, 16))),
    lambda s: s.add(Click((4, 24, 16), positive=False)),
    lambda s: s.add(Click((3, 20, 15), axis=1)),
    lambda s: s.accept(),
    lambda s: s.propagate(axis=0)[0],
    lambda s: s.add(Click((5, 8, 25), axis=2)),
    lambda s: s.undo(),
    lambda s: s.redo(),
    lambda s: s.paint((slice(0, 3), slice(10, 20), slice(0, 9)), np.full((3, 10, 9), 70000)),
    lambda s: s.discard(),
    lambda s: s.delete(3),
    lambda s: s.undo(),
    lambda s: s.relabel(300, 12),
    lambda s: s.merge(12, 3),
    lambda s: s.select(3),
    lambda s: s.add(Click((3, 7, 7))),
    lambda s: s.undo(),
    lambda s: s.undo(),
]


def opened(folder, labels=None) -> Session:
    image = phantom()
    return Session(image, DiskSegmenter(), FakePolicy(), labels=labels, journal=Journal.create(folder, image), store=FakeStore())


def lived(session):
    """What every action of the day changed, and the labels after it."""
    told = []
    for act in DAY:
        before = np.array(session.labels).astype(np.int64)
        change = act(session)
        for region, values in change.pieces:
            before[region] = values
        np.testing.assert_array_equal(before, session.labels)
        told.append((change.region, change.label, np.array(session.labels), session.finished, session.candidate))
    return told


def test_a_session_on_the_disk_is_a_session_in_memory(tmp_path, on_disk):
    known = known_labels()
    in_memory = lived(opened(tmp_path / "memory", known))
    on_disk()
    session = opened(tmp_path / "disk", LazyArray(known))
    assert isinstance(session.labels, BlockArray)
    for number, (one, other) in enumerate(zip(in_memory, lived(session), strict=True)):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=f"action {number}")
            assert getattr(a, "dtype", None) == getattr(b, "dtype", None), number
    events = [read_journal(tmp_path / name)[1] for name in ("memory", "disk")]
    told = [[(e.kind, e.changed, e.patch and e.patch.region) for e in some if e.kind != "open"] for some in events]
    assert told[0] == told[1]
    tiles = [max(len(e.patch.tiles) for e in some if e.patch) for some in events]
    assert tiles[0] == 1 < tiles[1]
    assert len([e for e in events[1] if e.kind == "open"]) > 1  # one for every block
    np.testing.assert_array_equal(np.asarray(replay_labels(tmp_path / "disk")), in_memory[-1][2])


@pytest.mark.parametrize("done", [1, 5, 9, len(DAY)])
def test_whatever_kills_it_the_journal_brings_it_back(tmp_path, on_disk, done):
    """A folder as a killed process leaves it: the journal, checkpoints, and blocks that nobody cleared away."""
    on_disk()
    session = opened(tmp_path / "folder", known_labels())
    for act in DAY[:done]:
        act(session)
    shutil.copytree(tmp_path / "folder", tmp_path / "killed")
    left = [path.name for path in (tmp_path / "killed").glob("blocks-*")]
    assert left
    again = resume(tmp_path / "killed", phantom(), DiskSegmenter(), FakePolicy(), FakeStore())
    assert isinstance(again.labels, BlockArray)
    np.testing.assert_array_equal(np.asarray(again.labels), np.asarray(session.labels))
    assert (again.label, again.finished, again.clicks) == (session.label, session.finished, session.clicks)
    assert not {*left} & {path.name for path in (tmp_path / "killed").iterdir()}
    for one in (again, session):
        one.close()


def no_space(*_):
    raise OSError(28, "No space left on device")


def test_a_full_disk_refuses_an_action_and_takes_no_object_away(tmp_path, on_disk, monkeypatch):
    on_disk()
    monkeypatch.setattr(blocks, "_CACHE_BYTES", 6000)
    folder, oracle = tmp_path / "folder", known_labels()
    session = opened(folder, LazyArray(oracle))

    def paint(z: int) -> None:
        session.paint((slice(z, z + 1), slice(0, 30), slice(0, 30)), np.full((1, 30, 30), 10 + z))
        oracle[z, :30, :30] = 10 + z

    def go_on() -> None:
        for z in (2, 4, 6, 8):
            paint(z)
            done.append(z)

    paint(0)
    done = []
    with monkeypatch.context() as full:
        full.setattr(type(session.labels._stored), "__setitem__", no_space)
        with pytest.raises(WriteError) as error:
            go_on()  # first memory takes what the disk does not
        one_sentence(error, "the labels cannot be written to", "No space left on device", "expected free space")
        assert done
        count = len(read_journal(folder)[1])
        with pytest.raises(WriteError, match="cannot be written"):
            session.undo()
        np.testing.assert_array_equal(session.labels, oracle)
        assert (session.can_redo, len(read_journal(folder)[1])) == (False, count)
        with pytest.raises(WriteError, match="cannot be written"):
            opened(tmp_path / "another", LazyArray(oracle + 1))
    paint(8)
    np.testing.assert_array_equal(session.labels, oracle)
    np.testing.assert_array_equal(np.asarray(replay_labels(folder)), oracle)
    for _ in range(len(done) + 2):
        session.undo()
    np.testing.assert_array_equal(session.labels, known_labels())
    for _ in range(len(done) + 2):
        session.redo()
    session.close()
    with monkeypatch.context() as full:
        full.setattr(type(session.labels._stored), "__setitem__", no_space)
        for read in (replay_labels, lambda folder: resume(folder, phantom(), DiskSegmenter(), FakePolicy())):
            with pytest.raises(WriteError, match="cannot be written"):
                read(folder)


def test_known_labels_are_checked_as_they_are_copied(on_disk):
    on_disk()
    wrong = np.zeros(SHAPE, np.int32)
    wrong[5, 5, 5] = -1
    for labels, words in ((LazyArray(wrong), "-1"), (np.zeros((2, 2, 2), int), str(SHAPE)), (np.zeros(SHAPE), "float64")):
        with pytest.raises(LabelsError) as error:
            LabelMap(SHAPE, labels)
        one_sentence(error, words, "expected")


def test_only_the_clicked_slice_is_read():
    class Slices:
        shape, dtype, asked = (1, *SHAPE), np.dtype(np.uint8), set()

        def __getitem__(self, index):
            self.asked.add(index[1])
            return phantom().data[index]

    image = Image(LazyArray(Slices()))
    session = Session(image, DiskSegmenter(), FakePolicy())
    session.add(Click((4, 20, 16)))
    session.add(Click((4, 22, 16)))
    session.accept()
    assert Slices.asked == {4}


# --------------------------------------------------------------------------------------------------------- files that stay on the disk


@pytest.mark.parametrize("extension", [".nii", ".tif", ".ome.tif", ".ome.zarr", ".zarr"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_reading_from_the_disk_is_reading_into_memory(tmp_path, on_disk, extension, dtype):
    path = save_image(tmp_path / f"a{extension}", phantom(dtype))
    whole = read(path)
    assert isinstance(whole.data, np.ndarray)
    on_disk()
    image = read(path)
    assert isinstance(image.data, LazyArray)
    assert (image.data.shape, image.data.dtype, image.units) == (whole.data.shape, whole.data.dtype, whole.units)
    np.testing.assert_array_equal(image.affine, whole.affine)
    np.testing.assert_array_equal(np.asarray(image.data), whole.data)
    for plane in (Plane(0, 4), Plane(1, 39), Plane(2, 0)):
        np.testing.assert_array_equal(image.slice(plane).data, whole.slice(plane).data)


def test_tiff_without_compression_is_mapped(tmp_path, on_disk):
    values = phantom(np.uint16).data[0]
    for name, options in (("one.tif", {"contiguous": True}), ("big.tif", {"byteorder": ">"}), ("tiles.tif", {"tile": (16, 16)})):
        tifffile.imwrite(tmp_path / name, values, **options)
    on_disk()
    for path in sorted(tmp_path.iterdir()):
        np.testing.assert_array_equal(read(path).data[0], values)


def test_colours_and_time_points_stay_on_the_disk(tmp_path, on_disk):
    rng = np.random.default_rng(0)
    series = rng.integers(0, 99, (2, *SHAPE)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(series.T, np.eye(4)), tmp_path / "series.nii")
    tifffile.imwrite(tmp_path / "series.ome.tif", series, metadata={"axes": "TZYX"})
    colours = Image(rng.integers(0, 255, (3, *SHAPE)).astype(np.uint8))
    paths = [save_image(tmp_path / f"colours{extension}", colours) for extension in (".tif", ".ome.zarr")]
    on_disk()
    for name in ("series.nii", "series.ome.tif"):
        np.testing.assert_array_equal(read(tmp_path / name, time=1).data[0], series[1])
        with pytest.raises(ReadError, match="2 time points"):
            read(tmp_path / name)
    for path in paths:
        np.testing.assert_array_equal(read(path).data[:], colours.data)


def test_scaled_nifti_is_scaled_as_in_memory(tmp_path, on_disk):
    image = nibabel.Nifti1Image(phantom(np.int16).data[0].T, np.eye(4))
    image.header.set_slope_inter(0.37, -12.5)
    nibabel.save(image, tmp_path / "a.nii")
    whole = read(tmp_path / "a.nii")
    on_disk()
    np.testing.assert_allclose(read(tmp_path / "a.nii").data[0], whole.data[0], rtol=1e-6)
    assert read(tmp_path / "a.nii").data.dtype == whole.data.dtype == np.float32


def test_a_nifti_larger_than_memory_opens(tmp_path):
    """A sparse file: its voxels take no disk, and reading all of them would take 64 GiB of memory."""
    shape = (4096, 4096, 2048)
    header = nibabel.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(np.int16)
    header["vox_offset"] = 352
    path = tmp_path / "huge.nii"
    with path.open("wb") as file:
        file.write(header.binaryblock + b"\0" * 4)
        file.seek(352 + 2 * 4096**2 * 1000)
        file.write(np.arange(4096, dtype=np.int16).tobytes())
        file.truncate(352 + 2 * 4096**2 * 2048)
    image = read(path)
    assert image.shape == (2048, 4096, 4096)
    assert image.slice(Plane(0, 1000)).data[0, 0].tolist() == list(range(4096))
    assert labels_path(image) == tmp_path / "huge_labels.ome.zarr"
    os.truncate(path, 10**9)
    with pytest.raises(ReadError, match="damaged or truncated"):
        read(path)


def test_only_the_chunks_of_a_slice_are_read(tmp_path, on_disk):
    path = save_image(tmp_path / "a.ome.zarr", phantom())
    on_disk()
    expected = read(path).data[0, 5].copy()
    for chunk in (path / "0" / "c").rglob("*"):
        if chunk.is_file() and int(chunk.relative_to(path / "0" / "c").parts[0]) != 5 // 4:
            chunk.write_bytes(b"damaged")
    np.testing.assert_array_equal(read(path).data[0, 5], expected)
    with pytest.raises(Exception):  # noqa: B017, PT011 # whatever the codec says
        read(path).data[0, 0]


# ---------------------------------------------------------------------------------------------------------------------------- OME-Zarr


@pytest.mark.parametrize("on_the_disk", [False, True])
@pytest.mark.parametrize("affine", [SPACING, OBLIQUE, SPACING * [[1], [-1], [1], [1]], affine_from_spacing((4e-6, 8e-6, 8e-6))])
@pytest.mark.parametrize("units", ["mm", "pixel"])
def test_labels_come_back_where_the_image_lies(tmp_path, on_disk, affine, units, on_the_disk):
    labels, image = known_labels(), phantom(affine=affine, units=units)
    kept = labels
    if on_the_disk:
        on_disk()
        kept = LabelMap(SHAPE, labels).array
        assert isinstance(kept, BlockArray)
    path = write(tmp_path / "a.ome.zarr", kept, like=image)
    assert isinstance(read_labels(path), LazyArray if on_the_disk else np.ndarray)
    np.testing.assert_array_equal(np.asarray(read_labels(path)), labels)
    back = read(path)
    np.testing.assert_array_equal(back.affine, image.affine)
    assert (back.units, back.shape) == (units, SHAPE)
    twice = write(tmp_path / "b.ome.zarr", kept, like=back)
    np.testing.assert_array_equal(read(twice).affine, image.affine)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ome.zarr", "b.ome.zarr"]


def microscope(path, version, arrays, scales, *, axes="tczyx", unit="micrometer", level_wide=True):
    """An OME-Zarr as other programs write it."""
    group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    datasets = []
    for number, (values, scale) in enumerate(zip(arrays, scales, strict=True)):
        group.create_array(f"s{number}", data=values, chunks=tuple(min(4, n) for n in values.shape))
        steps = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": [0.0] * (len(axes) - 3) + [5.0, 6.0, 7.0]}]
        datasets.append({"path": f"s{number}", "coordinateTransformations": steps})
    kinds = {"t": "time", "c": "channel"}
    named = [{"name": a, "type": kinds.get(a, "space"), **({"unit": unit} if unit and a in "zyx" else {})} for a in axes]
    multiscale = {"name": "made", "axes": named, "datasets": datasets}
    if level_wide:
        multiscale["coordinateTransformations"] = [{"type": "scale", "scale": [1.0] * (len(axes) - 3) + [2.0] * 3}]
    if version == "0.4":
        group.attrs["multiscales"] = [{"version": "0.4", **multiscale}]
    else:
        group.attrs["ome"] = {"version": version, "multiscales": [multiscale]}
    return path


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("on_the_disk", [False, True])
def test_what_other_programs_write_is_read(tmp_path, on_disk, version, on_the_disk):
    fine = np.random.default_rng(0).integers(0, 9999, (2, 1, 6, 8, 10)).astype(np.uint16)
    coarse = fine[..., ::2, ::2]
    scales = [[1.0, 1.0, 3.0, 0.5, 0.25], [1.0, 1.0, 3.0, 1.0, 0.5]]
    path = microscope(tmp_path / "cells.ome.zarr", version, [fine, coarse], scales)
    if on_the_disk:
        on_disk()
    image = read(path, time=1)
    np.testing.assert_array_equal(np.asarray(image.data), fine[1])
    assert (image.name, image.units) == ("cells", "mm")
    np.testing.assert_allclose(image.affine, affine_from_spacing((6e-3, 1e-3, 0.5e-3), (10e-3, 12e-3, 14e-3)), rtol=1e-12)
    assert [level.shape for level in image.coarser] == ([(1, 6, 4, 5)] if on_the_disk else [])
    half = read(path, time=0, level=1)
    np.testing.assert_array_equal(np.asarray(half.data), coarse[0])
    np.testing.assert_allclose(half.spacing, (6e-3, 2e-3, 1e-3), rtol=1e-12)
    labels = np.random.default_rng(1).integers(0, 5, image.shape)
    written = write(labels_path(image), labels, like=image)
    assert written == tmp_path / "cells_labels.ome.zarr"
    np.testing.assert_array_equal(read(written).affine, image.affine)
    np.testing.assert_array_equal(np.asarray(read_labels(written)), labels)
    stated = zarr.open_group(written, mode="r")
    assert stated.metadata.zarr_format == (2 if version == "0.4" else 3)
    axes = stated.attrs.asdict().get("ome", stated.attrs.asdict())["multiscales"][0]["axes"]
    assert [(axis["name"], axis["unit"]) for axis in axes] == [(name, "micrometer") for name in "zyx"]


def test_labels_within_an_image_and_plain_arrays_are_read(tmp_path):
    microscope(tmp_path / "a.zarr", "0.5", [np.ones((3, 4, 5), np.uint8)], [[1.0, 1.0, 1.0]], axes="zyx", unit=None)
    cells = np.random.default_rng(0).integers(0, 9, (3, 4, 5))
    microscope(tmp_path / "a.zarr" / "labels" / "cells", "0.5", [cells], [[1.0, 2.0, 2.0]], axes="zyx", unit=None, level_wide=False)
    np.testing.assert_array_equal(read_labels(tmp_path / "a.zarr" / "labels" / "cells"), cells)
    assert read(tmp_path / "a.zarr" / "labels" / "cells").spacing == (1.0, 2.0, 2.0)
    assert read(tmp_path / "a.zarr" / "labels" / "cells").units == "pixel"
    np.testing.assert_array_equal(read(tmp_path / "a.zarr" / "labels" / "cells" / "s0").data[0], cells)
    for shape, expected in (((4, 5), (1, 4, 5)), ((3, 4, 5), (1, 3, 4, 5)), ((4, 5, 3), (3, 4, 5)), ((3, 4, 5, 4), (3, 3, 4, 5))):
        zarr.create_array(tmp_path / "plain.zarr", data=np.ones(shape, np.uint8), overwrite=True)
        assert read(tmp_path / "plain.zarr").data.shape == expected
    names = ("x", "y", "z")
    zarr.create_array(tmp_path / "plain.zarr", data=cells, dimension_names=names, overwrite=True)
    np.testing.assert_array_equal(read(tmp_path / "plain.zarr").data[0], cells.T)


def test_bad_zarr_gives_one_sentence(tmp_path):
    flat = np.ones((4, 5), np.uint8)
    (tmp_path / "empty.zarr").mkdir()
    (tmp_path / "file.zarr").write_bytes(b"not a folder")
    zarr.open_group(tmp_path / "group.zarr", mode="w").create_array("raw", data=flat)
    microscope(tmp_path / "five.zarr", "0.5", [np.ones((5, 2, 4, 5), np.uint8)], [[1.0] * 4], axes="czyx", level_wide=False)
    microscope(tmp_path / "four.zarr", "0.5", [np.ones((4, 2, 4, 5), np.uint8)], [[1.0] * 4], axes="czyx", level_wide=False)
    zarr.create_array(tmp_path / "named.zarr", data=np.ones((3, 4, 5, 4), np.uint8), dimension_names=("z", "y", "x", "c"))
    microscope(tmp_path / "flat.zarr", "0.5", [np.ones((2, 4, 5), np.uint8)], [[1.0, 0.0, 1.0]], axes="zyx", level_wide=False)
    zarr.create_array(tmp_path / "line.zarr", data=np.ones(4))
    zarr.create_array(tmp_path / "words.zarr", data=np.ones((4, 5), complex))
    for name, words in {
        "none.zarr": "does not exist",
        "empty.zarr": "holds no zarr group or array",
        "file.zarr": "is a file",
        "group.zarr": "such as the array raw",
        "five.zarr": "5 channels",
        "four.zarr": "4 channels",
        "named.zarr": "4 channels",
        "line.zarr": "(4,)",
        "words.zarr": "complex128",
    }.items():
        with pytest.raises(ReadError) as error:
            read(tmp_path / name)
        one_sentence(error, name, words, "expected")
    for path, level in ((tmp_path / "line.zarr", 1), (save_image(tmp_path / "a.nii", phantom()), 1), (tmp_path / "flat.zarr", 3)):
        with pytest.raises(ReadError, match="level="):
            read(path, level=level)


def test_only_what_we_wrote_is_replaced(tmp_path, monkeypatch):
    image = phantom()
    path = write(tmp_path / "a.ome.zarr", known_labels(), like=image)
    write(path, known_labels() * 2, like=image)
    np.testing.assert_array_equal(read_labels(path), known_labels() * 2)
    other = microscope(tmp_path / "b.zarr", "0.5", [np.ones((3, 4, 5), np.uint8)], [[1.0] * 3], axes="zyx")
    (tmp_path / "c.zarr").write_text("precious")
    for foreign in (other, tmp_path / "c.zarr"):
        with pytest.raises(WriteError, match="not written by this program"):
            write(foreign, known_labels(), like=image)
    assert read(other).data.all()
    real = os.replace

    def failing(source, target):
        if Path(target).name == "a.ome.zarr" and not str(source).endswith(".old"):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(WriteError, match="disk is full"):
        write(path, known_labels(), like=image)
    np.testing.assert_array_equal(read_labels(path), known_labels() * 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ome.zarr", "b.zarr", "c.zarr"]


def test_labels_on_the_disk_go_to_ome_zarr_only(tmp_path, on_disk):
    on_disk()
    kept = LabelMap(SHAPE, known_labels()).array
    for extension in (".nii.gz", ".tif", ".mha"):
        with pytest.raises(WriteError) as error:
            write(tmp_path / f"a{extension}", kept, like=phantom())
        one_sentence(error, f"a{extension}", ".ome.zarr")
    assert list(tmp_path.iterdir()) == []
