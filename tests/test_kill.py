"""kill -9 at any moment loses nothing that was done before the last action.

Run as a script, this file is the process that gets killed: for every folder that arrives on standard input a fresh copy of it opens or
resumes the session in that folder and works there. It says its process id, then after every action the number of actions in the
journal and a digest of all that a user can tell.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from napari_apprentice.fakes import DiskSegmenter, FakePolicy, FakeStore
from napari_apprentice.journal import Journal, read_journal, replay_labels
from napari_apprentice.session import Session, resume
from napari_apprentice.types import Click, Image, Plane

KILLS, SESSIONS = 50, 10
SHAPE = (4, 40, 30)
IMAGE = Image(np.random.default_rng(0).random((1, *SHAPE)), name="volume")
POLICY = FakePolicy(per_click=0.01, per_accept=0.02)


def begin(folder: Path) -> Session:
    return Session(IMAGE, DiskSegmenter(3.0), POLICY, journal=Journal.create(folder, IMAGE), store=FakeStore())


def go_on(folder: Path) -> Session:
    return resume(folder, IMAGE, DiskSegmenter(3.0), POLICY, FakeStore())


def act(session: Session) -> None:
    """Do something that makes exactly one event in the journal; what it is follows from the number of events so far."""
    draw = np.random.default_rng(session._journal.sequence)
    what = draw.random()
    if what < 0.12 and session.can_undo:
        session.undo()
    elif what < 0.4 and session.can_redo:
        session.redo()
    elif session.pending and what < 0.7:
        session.learn()
    elif what < 0.35 and session.clicks:
        session.accept(learn=False)
    elif what < 0.40 and session.clicks:
        session.discard()
    elif what < 0.45:
        session.select(max(session.label, 1) + 1)
    elif what < 0.48:
        act_on_an_object(session, draw)
    elif what < 0.55:
        corner = [int(draw.integers(0, size - 3)) for size in SHAPE]
        values = (session.labels[tuple(slice(c, c + 3) for c in corner)].astype(int) + 1) % 5
        session.paint(tuple(slice(c, c + 3) for c in corner), values)
    else:
        session.add(Click(tuple(int(draw.integers(0, size)) for size in SHAPE), bool(draw.random() < 0.8), int(draw.integers(0, 3))))


def act_on_an_object(session: Session, draw: np.random.Generator) -> None:
    """Do something to a whole object."""
    present = [int(i) for i in np.unique(session.labels) if i]
    label = int(draw.choice(present)) if present else 1
    voxels = np.argwhere(session.labels == label)
    others = [i for i in present if i != label]
    what = int(draw.integers(0, 6))
    if what == 0 and len(voxels):
        session.delete(label)
    elif what == 1 and len(voxels):
        session.relabel(label, max(session._state.next_id, 300))
    elif what == 2 and others:
        session.merge(label, int(draw.choice(others)))
    elif what == 3 and len(voxels) > 1:
        session.split(label, [tuple(voxels[0]), tuple(voxels[-1])])
    elif what == 4 and (fresh := Plane(0, int(draw.integers(0, SHAPE[0])))) not in session._state.origin(label).own:
        session.approve(fresh, label=label)
    else:
        session.name(label, f"class {session._journal.sequence}")


def digest(session: Session) -> str:
    """Of all that a user can tell of a session and its model."""
    answers = sorted((plane, answer.logits.tobytes(), answer.box) for plane, answer in session.predictions.items())
    lessons = [(lesson.image_slice.plane, lesson.clicks, lesson.mask.tobytes()) for lesson in session.pending]
    facts = session.label, session.clicks, session.finished, session.legend, answers, lessons, session._segmenter.snapshot()
    return hashlib.sha256(repr(facts).encode() + session.labels.astype(np.uint32).tobytes()).hexdigest()


def say(*words: object) -> None:
    """One line in one write, whole even if it is the last: printing writes word by word where Python does not buffer."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def work(folder: Path) -> None:
    """Work until killed."""
    say(os.getpid())
    session = go_on(folder) if (folder / "journal.jsonl").exists() else begin(folder)
    while True:
        act(session)
        say(session._journal.sequence, digest(session))


pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can be forked")


@pytest.fixture
def worker():
    """A process that works in the folders it is told, in a fresh copy of itself each."""
    with subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.stdin.close()
        process.wait(timeout=60)


def killed(worker: subprocess.Popen[str], folder: Path, chance: random.Random) -> tuple[int, str] | None:
    """Let somebody work in ``folder`` and kill them at a random moment; number and digest of the last action they saw done, if any."""
    worker.stdin.write(f"{folder}\n")
    worker.stdin.flush()
    process_id = int(worker.stdout.readline())
    done: list[str] = []
    for _ in range(chance.choice([0, 1, 2, 5, 20])):
        done += [worker.stdout.readline()] if done[-1:] != ["dead\n"] else []
    assert "dead\n" not in done, "it died on its own, see its standard error"
    time.sleep(chance.choice([0, chance.uniform(0, 0.003), chance.uniform(0, 0.05)]))
    os.kill(process_id, signal.SIGKILL)
    while (line := worker.stdout.readline()) != "dead\n":
        assert line, "the process that starts the others has ended"
        done.append(line)
    acknowledged = [line.split() for line in done if len(line.split()) == 2 and len(line.split()[1]) == 64]
    return (int(acknowledged[-1][0]), acknowledged[-1][1]) if acknowledged else None


def as_of(folder: Path, count: int, elsewhere: Path) -> Path:
    """A copy of the session in ``folder`` with only the first ``count`` actions of its journal."""
    shutil.copytree(folder, elsewhere)
    journal = elsewhere / "journal.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[: count + 1]))
    return elsewhere


def test_nothing_acknowledged_is_lost_at_fifty_random_moments(worker, tmp_path):
    chance = random.Random(20)
    seen = {}
    for kill in range(KILLS):
        folder = tmp_path / f"session{kill % SESSIONS}"
        folder.mkdir(exist_ok=True)
        count, state = killed(worker, folder, chance) or seen.get(folder, (0, None))
        if not (folder / "journal.jsonl").exists():
            assert count == 0
            continue
        survived = len(read_journal(folder)[1])
        assert count <= survived <= count + 1, "every action was journaled before it was acknowledged, and no later one was begun"
        session = go_on(folder)
        assert (replay_labels(folder) == session.labels).all()
        if count:
            earlier = as_of(folder, count, tmp_path / f"before{kill}")
            before = go_on(earlier)
            assert digest(before) == state
            if survived > count:
                act(before)
                # The killed process may have had a longer undo history than a resumed one, and so have chosen another action.
                mine, theirs = (read_journal(place)[1][count] for place in (earlier, folder))
                same = (mine.kind, mine.click, mine.label) == (theirs.kind, theirs.click, theirs.label)
                assert not same or digest(before) == digest(session), "the action in the middle of which it was killed is there as a whole"
            before.close()
        session.close()
        seen[folder] = survived, digest(session)
    assert sum(count for count, _ in seen.values()) > 150


if __name__ == "__main__":
    for line in sys.stdin:
        child = os.fork()
        if not child:
            work(Path(line.strip()))
        os.waitpid(child, 0)
        say("dead")
