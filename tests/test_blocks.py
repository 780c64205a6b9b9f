"""Laws of labels on the disk: they are what a numpy array is, whatever was written, and however little of it is in memory."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

from napari_apprentice import blocks
from napari_apprentice.blocks import BlockArray, cleared, is_large
from napari_apprentice.types import WriteError


def some_region(rng, shape):
    sides = [slice(*sorted(rng.integers(0, size + 1, 2).tolist())) for size in shape]
    return tuple(int(rng.integers(size)) if rng.random() < 0.2 else side for size, side in zip(shape, sides, strict=True))


@pytest.fixture(params=[2**27, 200], ids=["in memory", "mostly on the disk"])
def cache(request, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", (2, 4, 3))
    monkeypatch.setattr(blocks, "_CACHE_BYTES", request.param)


@pytest.mark.parametrize("shape", [(5, 9, 8), (7, 10)])
def test_it_is_what_a_numpy_array_is(tmp_path, cache, shape):
    rng = np.random.default_rng(0)
    oracle, array = np.zeros(shape, np.uint32), BlockArray(shape, folder=tmp_path)
    for _ in range(60):
        region = some_region(rng, shape)
        values = rng.integers(0, rng.choice([2, 300, 70000, 2**32]), oracle[region].shape) * (rng.random() < 0.7)
        oracle[region] = values
        array[region] = values
        looked_at = some_region(rng, shape)
        np.testing.assert_array_equal(array[looked_at], oracle[looked_at])
    np.testing.assert_array_equal(np.asarray(array), oracle)
    rebuilt = np.zeros_like(oracle)
    for where, values in array.pieces():
        assert values.any()
        rebuilt[where] = values
    np.testing.assert_array_equal(rebuilt, oracle)
    for label in np.unique(oracle)[1:20]:
        found = np.zeros_like(oracle)
        for where, values in array.pieces(int(label)):
            assert (values == label).any()
            found[where] = values
        assert (found == label).sum() == (oracle == label).sum()
    np.testing.assert_array_equal(array[::2, 1::3], oracle[::2, 1::3])
    covered = np.zeros(shape, int)
    for region in array.regions():
        covered[region] += 1
    assert (covered == 1).all()


def test_nothing_is_lost_on_the_way_to_the_disk_and_back(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", (1, 4, 4))
    monkeypatch.setattr(blocks, "_CACHE_BYTES", 40)
    array = BlockArray((8, 8, 8), folder=tmp_path)
    for z in range(8):
        array[z] = z
    for z in range(8):
        assert (array[z] == z).all()
    assert sum(held.nbytes for held in array._kept.values()) <= 40
    array[3] = 0
    assert {int(v.max()) for _, v in array.pieces()} == {1, 2, 4, 5, 6, 7}
    assert not array[3].any()


def no_space(*_):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("shown", [False, True])
def test_what_a_full_disk_does_not_take_stays_in_memory_until_it_does(tmp_path, monkeypatch, shown):
    monkeypatch.setattr(blocks, "BLOCK", (1, 4, 4))
    monkeypatch.setattr(blocks, "_CACHE_BYTES", 40)
    array = BlockArray((8, 8, 8), folder=tmp_path)
    array[0] = 9
    array[0, 0, 0] = 1
    oracle = array[:]
    with pytest.MonkeyPatch.context() as full:
        full.setattr(type(array._stored), "__setitem__", no_space)
        for z in range(1, 8):
            oracle[z] = array[z] = z
        if shown:
            np.testing.assert_array_equal(array.readonly()[:], oracle)
        with pytest.raises(WriteError, match=r"labels cannot be written to .*No space left on device\); expected free space"):
            array.settle()
        with pytest.raises(WriteError, match="cannot be written"):
            array.duplicate(np.uint32)
    np.testing.assert_array_equal(array[:], oracle)
    array.settle()
    assert sum(held.nbytes for held in array._kept.values()) <= 40
    np.testing.assert_array_equal(array[:], oracle)


def test_types_widen_as_they_do_in_numpy(cache):
    array = BlockArray((4, 8, 6))
    assert array[0].dtype == np.uint8
    array.widen(np.uint16)
    assert array.dtype == array[0].dtype == np.uint16
    view = array.readonly()
    array.widen(np.uint32)
    array[1, 2, 3] = 2**31
    assert view[1, 2, 3] == 2**31  # a view from before shows it, too
    assert array[2].dtype == np.uint32


def test_a_view_cannot_be_written_to_and_a_copy_is_its_own(cache, tmp_path):
    array = BlockArray((4, 8, 6), folder=tmp_path)
    array[1] = 5
    with pytest.raises(ValueError, match="only be read"):
        array.readonly()[0] = 1
    copy = array.duplicate(np.uint32)
    copy[1] = 6
    assert (array[1] == 5).all()
    assert copy.dtype == np.uint32
    assert len(list(tmp_path.iterdir())) == 2
    del array, copy
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_a_volume_far_larger_than_memory_takes_nothing(tmp_path):
    array = BlockArray((10_000, 40_000, 40_000), folder=tmp_path)
    assert array.nbytes == 16 * 10**12
    assert is_large(array.shape)
    array[5000, 20_000:20_010, 30_000:30_300] = 7
    assert array[4999:5002, 19_999:20_001, 30_299:30_301].tolist() == [[[0, 0]] * 2, [[0, 0], [7, 0]], [[0, 0]] * 2]
    assert len(list(array.pieces())) <= 2 * 3


def test_threads_may_read_while_another_one_writes(cache):
    array = BlockArray((6, 8, 6))
    errors = []

    def read():
        try:
            for _ in range(40):
                found = array[2]
                assert (found == found[0, 0]).all()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    array[2] = 1
    for thread in threads:
        thread.start()
    for value in range(20):
        array[3] = value
    for thread in threads:
        thread.join(30)
    assert errors == []


def test_what_a_killed_process_left_is_cleared_and_what_is_in_use_is_not(tmp_path):
    used = BlockArray((4, 8, 6), folder=tmp_path)
    used[2] = 3
    (own,) = tmp_path.iterdir()
    shutil.copytree(own, tmp_path / "blocks-killed")
    (tmp_path / "journal.jsonl").write_text("stays")
    assert cleared(tmp_path) == tmp_path
    assert {path.name for path in tmp_path.iterdir()} == {"journal.jsonl", own.name}
    assert (used.readonly()[2] == 3).all()
    del used
    assert [path.name for path in tmp_path.iterdir()] == ["journal.jsonl"]


_OTHER = """
import sys
from pathlib import Path
from napari_apprentice.blocks import BlockArray
array = BlockArray((4, 8, 6), folder=Path(sys.argv[1])).duplicate("uint32")  # as the layer of a session has
array[2] = 3
print("there", flush=True)
sys.stdin.readline()
print(int(array[:].sum()), array._folder.path.exists(), flush=True)
sys.stdin.readline()
"""


def test_what_another_process_still_has_is_not_cleared_before_it_ends_or_is_killed(tmp_path):
    command = [sys.executable, "-c", _OTHER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "there\n"
            (left,) = tmp_path.iterdir()
            cleared(tmp_path)
            other.stdin.write("\n")
            other.stdin.flush()
            assert other.stdout.readline() == f"{3 * 8 * 6} True\n"
        finally:
            other.kill()
    assert list(tmp_path.iterdir()) == [left]
    cleared(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_array_takes_its_folder_along_when_its_process_ends(tmp_path):
    subprocess.run([sys.executable, "-c", _OTHER, str(tmp_path)], input="\n\n", text=True, check=True, timeout=60, capture_output=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("index", [9, (0, 0, 0, 0), ([1, 2],), (slice(None, None, 2),)])
def test_writing_elsewhere_is_refused(index):
    with pytest.raises(IndexError, match="expected"):
        BlockArray((4, 8, 6))[index] = 1
