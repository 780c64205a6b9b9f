"""One process works in a folder; the second one can look, and is told who was first. A killed process locks nothing."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from napari_apprentice.fakes import DiskSegmenter, FakePolicy, FakeStore
from napari_apprentice.journal import JOURNAL_NAME, Journal
from napari_apprentice.locks import FolderLock
from napari_apprentice.session import Session, resume
from napari_apprentice.types import Click, Image, InUseError, Plane, SessionError, WriteError

IMAGE = Image(np.random.default_rng(0).random((1, 4, 20, 24)), name="volume")

HOLDING = """
import sys
from pathlib import Path
from napari_apprentice.locks import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def begun(folder) -> Session:
    session = Session(IMAGE, DiskSegmenter(3.0), FakePolicy(), journal=Journal.create(folder, IMAGE), store=FakeStore())
    session.add(Click((1, 8, 8)))
    session.accept()
    session.add(Click((2, 8, 8)))
    return session


def again(folder) -> Session:
    return resume(folder, IMAGE, DiskSegmenter(3.0), FakePolicy(), FakeStore())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_folder_is_locked_once_until_it_is_released(tmp_path):
    first = FolderLock(tmp_path)
    with pytest.raises(InUseError, match=rf"in use by this very process \({os.getpid()}\) since .*; expected it to be closed there first"):
        FolderLock(tmp_path)
    first.release()
    first.release()
    FolderLock(tmp_path).release()


def test_a_killed_process_locks_nothing_and_a_living_one_is_named(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDING, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout.readline() == b"held\n"
            with pytest.raises(InUseError, match=f"process {other.pid} on this computer {socket.gethostname()}"):
                FolderLock(tmp_path)
        finally:
            other.send_signal(signal.SIGKILL)
    assert json.loads((tmp_path / "in-use.json").read_text())["process"] == other.pid  # it had no time to clear up
    lock = FolderLock(tmp_path)
    assert json.loads((tmp_path / "in-use.json").read_text())["process"] == os.getpid()
    lock.release()


@pytest.mark.parametrize(
    "text", ["", "{}", '{"process": "x"}', "[1]", '{"process": 1, "host": "elsewhere", "time": "2026-01-02T03:04:05+00:00"}']
)
def test_what_is_known_of_the_holder_is_told(tmp_path, text):
    lock = FolderLock(tmp_path)
    (tmp_path / "in-use.json").write_text(text)
    with pytest.raises(
        InUseError, match="process 1 on the computer elsewhere since 2026" if "elsewhere" in text else "by another process;"
    ):
        FolderLock(tmp_path)
    lock.release()


def test_a_folder_that_cannot_be_written_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "in-use.lock").mkdir()
    with pytest.raises(WriteError, match="cannot be locked"):
        FolderLock(tmp_path)


def test_two_journals_never_begin_in_one_folder_and_a_refusal_leaves_no_lock(tmp_path):
    lock = FolderLock(tmp_path)
    with pytest.raises(InUseError):
        Journal.create(tmp_path, IMAGE)
    lock.release()
    Journal.create(tmp_path, IMAGE).close()
    with pytest.raises(WriteError, match="journal of an earlier session"):
        Journal.create(tmp_path, IMAGE)
    Journal.reopen(tmp_path)[0].close()


def test_a_damaged_journal_leaves_no_lock(tmp_path):
    (tmp_path / JOURNAL_NAME).write_text("nonsense\n")
    with pytest.raises(OSError, match="does not begin like a journal"):
        Journal.reopen(tmp_path)
    FolderLock(tmp_path).release()


# --- the second session ---


def test_the_second_session_shows_what_the_first_has_done_and_changes_nothing(tmp_path):
    first = begun(tmp_path)
    before = contents(tmp_path)
    second = again(tmp_path)
    assert f"this very process ({os.getpid()})" in second.read_only
    assert not first.read_only
    assert (second.labels == first.labels).all()
    assert (second.label, second.clicks, second.finished, second.versions) == (first.label, first.clicks, first.finished, first.versions)
    assert second.peek() is not None
    assert second.slices(1)
    assert second.doubtful() == []
    second.export(1, tmp_path.with_name("exported.safetensors"))
    second.close()
    assert contents(tmp_path) == before


REFUSED: dict[str, Callable[[Session], object]] = {
    "add": lambda session: session.add(Click((1, 2, 2))),
    "accept": lambda session: session.accept(),
    "forget": lambda session: session.forget(),
    "go_back": lambda session: session.go_back(0),
    "pin": lambda session: session.pin(1),
    "undo": lambda session: session.undo(),
    "select": lambda session: session.select(7),
    "paint": lambda session: session.paint((slice(0, 1),) * 3, [[[9]]]),
    "propagate": lambda session: session.propagate(1),
    "approve": lambda session: session.approve(Plane(0, 3)),
    "delete": lambda session: session.delete(1),
    "relabel": lambda session: session.relabel(1, 7),
    "merge": lambda session: session.merge(2, 1),
    "split": lambda session: session.split(1, [(1, 8, 8), (1, 8, 9)]),
    "name": lambda session: session.name(1, "cell"),
    "discard": lambda session: session.discard(),
}


@pytest.mark.parametrize("action", REFUSED)
def test_no_action_of_the_second_session_happens(tmp_path, action):
    first = begun(tmp_path)
    before = contents(tmp_path)
    second = again(tmp_path)
    labels, state = second.labels.copy(), second._state
    with pytest.raises(SessionError, match="in use by this very process"):
        REFUSED[action](second)
    assert (second.labels == labels).all()
    assert second._state is state
    second.close()
    assert contents(tmp_path) == before
    first.undo()
    first.close()


def test_whoever_closes_lets_the_next_one_write(tmp_path):
    begun(tmp_path).close()
    second = again(tmp_path)
    assert not second.read_only
    second.accept()
    second.close()
    assert again(tmp_path).finished == (1, 2)


def test_a_second_session_leaves_the_blocks_of_the_first_alone(tmp_path):
    first = begun(tmp_path)
    (tmp_path / "blocks-killed").mkdir()
    again(tmp_path).close()
    assert len(list(tmp_path.glob("blocks-*"))) == 1
    first.close()
    again(tmp_path).close()
    assert list(tmp_path.glob("blocks-*")) == []


def test_a_session_that_nobody_has_any_more_holds_no_lock(tmp_path):
    session = begun(tmp_path)
    assert again(tmp_path).read_only
    del session
    gc.collect()
    assert not again(tmp_path).read_only
