"""Text files: what a user made of the place that they are written to stays, whatever lies there."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from napari_apprentice.texts import write_text
from napari_apprentice.types import WriteError


def test_a_link_stays_a_link_and_the_file_behind_it_gets_the_text(tmp_path):
    (tmp_path / "shared").mkdir()
    behind, link = tmp_path / "shared" / "table.csv", tmp_path / "table.csv"
    link.symlink_to(behind)
    for text in ("first", "second"):  # at first there is nothing behind it
        write_text(link, text)
        assert link.is_symlink()
        assert behind.read_text() == text
    assert [path.name for path in behind.parent.iterdir()] == ["table.csv"]


def test_a_file_keeps_its_permissions(tmp_path):
    path = tmp_path / "table.csv"
    path.touch()
    for mode in (0o600, 0o664):
        path.chmod(mode)
        write_text(path, "text")
        assert path.stat().st_mode & 0o777 == mode


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_gets_the_text_and_stays(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    write_text(pipe, "text")
    reader.join(timeout=20)
    assert read == ["text"]
    assert pipe.is_fifo()


def test_what_is_written_to_the_output_takes_the_place_of_nothing_there(tmp_path):
    file = tmp_path / "all.csv"
    file.write_text("earlier\n")
    code = "from napari_apprentice.texts import write_text; print('before'); write_text('/dev/stdout', 'text\\n'); print('after')"
    with file.open("a") as output:
        subprocess.run([sys.executable, "-c", code], stdout=output, check=True)
    assert file.read_text() == "earlier\nbefore\ntext\nafter\n"


def test_a_name_that_is_not_utf_8_is_written_as_an_escape(tmp_path):
    write_text(tmp_path / "table.csv", os.fsdecode(b"scan\xff"))
    assert (tmp_path / "table.csv").read_text("utf-8") == "scan\\udcff"


def test_where_nothing_can_be_written_one_sentence_says_so(tmp_path):
    for path in (tmp_path, tmp_path / "file" / "table.csv"):
        (tmp_path / "file").touch()
        with pytest.raises(WriteError, match=r"cannot be written \(.*; expected"):
            write_text(path, "text")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
