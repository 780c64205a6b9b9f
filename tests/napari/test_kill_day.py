"""A real window that is killed in the middle of a day, and what the kill run would notice: `benchmarks/kill_day.py`, in short."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
kill_day = pytest.importorskip("kill_day")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")]


@pytest.fixture
def case(tmp_path):
    case = kill_day.Case(tmp_path / "case")
    case.home.mkdir()
    kill_day.SMALL.write(case.image)
    return case


def test_a_window_that_is_killed_loses_nothing_and_the_next_one_goes_on(case):
    case.take(kill_day.lived(case, 0, kill_day.Moment("propagate", 0.3)))
    assert case.masks
    assert case.actions > 5
    assert case.check() == 0
    case.take(kill_day.lived(case, 1, only_look=True))

    case.masks.append((case.masks[0][0], kill_day.digest([1, 2, 3])))
    assert case.check() == 1, "a mask that was never accepted is told as lost"
    journal = kill_day.journal_in(case.home)
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[: case.actions]))
    with pytest.raises(AssertionError, match="actions were acknowledged, and the journal has"):
        case.check()


def test_a_file_that_holds_other_labels_than_were_saved_is_told(case):
    from napari_apprentice import files

    image = files.read(case.image)
    labels = (image.data[0] > 100).astype("uint8")
    case.saved.add(kill_day.digest(labels))
    files.write(files.labels_path(image), labels, like=image)
    assert case.check() == 0
    files.write(files.labels_path(image), 1 - labels, like=image)
    with pytest.raises(AssertionError, match="other labels than were saved"):
        case.check()
    files.write(files.labels_path(image), labels, like=image)
    (case.home / kill_day.TABLE).write_text("label,voxels\n1,2\n3")
    with pytest.raises(AssertionError, match="torn"):
        case.check()
