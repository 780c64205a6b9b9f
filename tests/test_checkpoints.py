"""A checkpoint is whole or absent, and only the newest few are kept."""

from __future__ import annotations

import pytest

from napari_apprentice.checkpoints import Checkpoints
from napari_apprentice.fakes import DiskWeights, FakeStore
from napari_apprentice.types import WriteError


class Breaking(FakeStore):
    """Writes half a file, then fails."""

    def save(self, snapshot, path):
        path.write_text("{")
        raise OSError(28, "No space left on device")


def test_a_failed_write_leaves_the_old_checkpoint_and_no_other_file(tmp_path):
    Checkpoints(FakeStore(), tmp_path).save(DiskWeights(3.0), "model-1.checkpoint")
    with pytest.raises(WriteError, match="No space left on device"):
        Checkpoints(Breaking(), tmp_path).save(DiskWeights(4.0), "model-1.checkpoint")
    assert [path.name for path in tmp_path.iterdir()] == ["model-1.checkpoint"]
    assert Checkpoints(FakeStore(), tmp_path).load("model-1.checkpoint") == DiskWeights(3.0)


def test_a_checkpoint_appears_under_its_name_in_one_step(tmp_path, monkeypatch):
    def fail(source, target):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(WriteError, match="Input/output error"):
        Checkpoints(FakeStore(), tmp_path).save(DiskWeights(), "model-1.checkpoint")
    assert not list(tmp_path.iterdir())


def test_what_is_missing_or_damaged_is_none(tmp_path):
    (tmp_path / "model-1.checkpoint").write_text("{")
    checkpoints = Checkpoints(FakeStore(), tmp_path)
    assert checkpoints.load("model-1.checkpoint") is None
    assert checkpoints.load("model-2.checkpoint") is None


def test_only_the_newest_of_those_named_are_kept(tmp_path):
    checkpoints = Checkpoints(FakeStore(), tmp_path)
    names = [f"model-{i}.checkpoint" for i in range(6)]
    for name in names:
        checkpoints.save(DiskWeights(), name)
    (tmp_path / "unfinished-model-9.checkpoint").write_text("{")
    (tmp_path / "journal.jsonl").write_text("{}")
    checkpoints.keep_newest(names[:5])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["journal.jsonl", *names[2:5]]


def test_a_cleared_checkpoint_is_written_again_and_an_existing_one_is_not(tmp_path):
    checkpoints = Checkpoints(FakeStore(), tmp_path)
    checkpoints.ensure(DiskWeights(3.0), "model-1.checkpoint")
    checkpoints.ensure(DiskWeights(4.0), "model-1.checkpoint")
    assert checkpoints.load("model-1.checkpoint") == DiskWeights(3.0)
    Checkpoints(Breaking(), tmp_path).ensure(DiskWeights(), "model-2.checkpoint")
    assert not (tmp_path / "model-2.checkpoint").exists()


def test_whatever_else_is_named_is_kept_too(tmp_path):
    checkpoints = Checkpoints(FakeStore(), tmp_path)
    names = [f"model-{i}.checkpoint" for i in range(6)]
    for name in names:
        checkpoints.save(DiskWeights(), name)
    checkpoints.keep_newest(names, also=[names[0], "model-9.checkpoint"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [names[0], *names[3:]]
