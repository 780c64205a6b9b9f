"""Labels that are being written, and the files that are known again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from napari_apprentice import files
from napari_apprentice._napari.saver import NOT_SAVED, Saver
from napari_apprentice.types import Click

HERE, ELSEWHERE = Path("session"), Path("session-2")


@pytest.fixture
def saver(errands):
    made, heard = Saver(errands), []
    made.going_changed.connect(heard.append)
    made.heard = heard
    return made


def test_what_is_saved_is_what_the_session_has_when_its_turn_comes(saver, sitting, errands, gate, tmp_path, told):
    path = tmp_path / "out.nii.gz"
    sitting.click(Click((4, 20, 24)))
    saver.save(sitting.session, HERE, path)
    saver.save(sitting.session, HERE, tmp_path / "second.nii.gz")  # one at a time
    assert saver.going
    gate.set()
    errands.wait()
    assert not saver.going
    assert saver.heard == [True, False]
    np.testing.assert_array_equal(files.read_labels(path), sitting.session.labels)
    assert sitting.session.labels.any()
    assert [each.name for each in tmp_path.glob("*.nii.gz")] == ["out.nii.gz"]
    assert errands.heard[-1] == "saved to out.nii.gz"
    assert told() == [f"The labels are saved in {path}."]


def test_a_file_is_its_own_from_its_own_writing_to_somebody_elses(saver, sitting, errands, tmp_path, monkeypatch):
    path = tmp_path / "out.tif"
    assert saver.may_write(path, HERE)
    path.write_bytes(b"somebody else's")
    assert not saver.may_write(path, HERE)
    saver.save(sitting.session, HERE, path)
    errands.wait()
    monkeypatch.chdir(tmp_path)
    assert saver.may_write(path, HERE)
    assert saver.may_write(path.relative_to(tmp_path), HERE)  # the same file by another name
    path.write_bytes(b"somebody else's again")
    assert not saver.may_write(path, HERE)


def test_a_file_of_another_session_is_not_its_own(saver, sitting, errands, tmp_path):
    path = tmp_path / "out.tif"
    saver.save(sitting.session, HERE, path)
    errands.wait()
    assert not saver.may_write(path, ELSEWHERE)
    saver.save(sitting.session, ELSEWHERE, path)
    errands.wait()
    assert saver.may_write(path, ELSEWHERE)
    assert not saver.may_write(path, HERE)


def test_called_off_nothing_is_written(saver, sitting, errands, gate, tmp_path):
    saver.cancel()  # nothing goes on
    saver.save(sitting.session, HERE, tmp_path / "out.tif")
    saver.cancel()
    gate.set()
    errands.wait()
    assert errands.heard[-1] == NOT_SAVED
    assert saver.heard == [True, False]
    assert not any(tmp_path.glob("out*"))


def test_who_is_let_go_still_writes(saver, sitting, errands, gate, tmp_path):
    path = tmp_path / "out.tif"
    saver.save(sitting.session, HERE, path)
    errands.drop_answers()
    saver.let_go()
    saver.let_go()
    assert saver.heard == [True, False]
    gate.set()
    errands.wait()
    assert path.exists()
    assert not saver.going


def test_a_save_that_fails_is_told_and_can_be_tried_again(saver, sitting, errands, tmp_path, told):
    saver.save(sitting.session, HERE, tmp_path / "nowhere" / "out.tif")
    errands.wait()
    assert "folder does not exist" in told()[0]
    assert saver.heard == [True, False]
    saver.save(sitting.session, HERE, tmp_path / "out.tif")
    errands.wait()
    assert (tmp_path / "out.tif").exists()
