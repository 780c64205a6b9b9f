"""Is anything lost when the window dies? A day's work in a real napari window, killed (SIGKILL) at random moments, again and again.

    python benchmarks/kill_day.py [--kills 24] [--seed 0] [--markdown docs/kills.md]     # needs a screen, see day.py

Every life is a process with a window of its own that goes on (*Resume*) where the one before was killed, does the steps of the day on the
next object of the volume, and says what it saw acknowledged: the masks of accepted objects as soon as the window shows them as accepted;
whenever all work is done, how many actions the journal has and a digest of all that the window shows. A moment is a step that is drawn by
chance and a share of the time that this step took in the first life, which is left to end by itself: it closes the window over an open
session.

After each life the session's folder is read without a window. Every mask must be in the journal as it was accepted; as of the last action
that was acknowledged the session must be what the window showed; saved files must be whole, the old or the new ones. The next window must
show after *Resume* what was found.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from day import Day, Hand, Tubes

SMALL = Tubes((10, 96, 96), 9, tuple((row, col) for row in (20, 62) for col in (18, 48, 78)))
LIVES, LAST_STEP = len(SMALL.centres), "close the window"
PATIENCE_S = 120.0
TABLE = "table.csv"


# --- what is told of a session ---


def digest(array: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(array, np.uint32).tobytes()).hexdigest()


def facts(state: Any, labels: npt.NDArray[Any]) -> str:
    """A digest of all that a user can tell of a session; ``state`` is the window's."""
    versions = [version.number for version in state.versions.versions]
    known = (state.label, state.clicks, state.finished, state.can_redo, state.doubts, state.legend, state.masks, state.versions.number)
    return hashlib.sha256(repr((known, versions, digest(labels))).encode()).hexdigest()


def journal_in(home: Path) -> Path | None:
    """The newest journal in which something was done."""
    journals = [path for path in home.glob("sessions/*/journal.jsonl") if actions_in(path)]
    return max(journals, key=lambda path: path.stat().st_mtime_ns, default=None)


def actions_in(journal: Path) -> int:
    """Whole lines after the first, which only says what it is about."""
    return journal.read_bytes().count(b"\n") - 1


# --- a life: the process that is killed ---


class Life(Day):
    """The day of one process, and what it says of it."""

    def __init__(self, home: Path, image: Path, tube: int, report: Path) -> None:
        super().__init__(Hand(rest_ms=30), image, SMALL, tube)
        self.home = home
        self._report = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._finished: set[int] = set()
        self._settle, self.hand.settle = self.hand.settle, self.settle

    def say(self, **words: object) -> None:
        """One line in one write: whole, and no killing takes it back."""
        os.write(self._report, (json.dumps(words) + "\n").encode())

    def settle(self) -> None:
        self._settle()
        if self.hand.widget is None or (state := self.hand.widget.bridge.state) is None:
            return
        journal, labels = journal_in(self.home), self.labels
        self.say(actions=0 if journal is None else actions_in(journal), facts=facts(state, labels), labels=digest(labels))

    @property
    def labels(self) -> npt.NDArray[Any]:
        """What the window shows."""
        return next(layer.data for layer in self.hand.viewer.layers if layer.name.endswith(" labels"))

    def on_state(self, state: Any) -> None:
        """Say at once which objects the window shows as accepted."""
        finished = set(state.finished) if state is not None else set()
        for label in finished - self._finished:
            self.say(accepted=label, mask=digest(self.labels == label))
        self._finished = finished

    def begin(self) -> None:
        """*Resume*, if there is something to resume, or *Start*"""
        again = self.hand.widget.resume.isEnabled()
        (self.resume if again else self.start)()
        self._settle()
        self._finished = set(self.hand.widget.bridge.state.finished)
        self.hand.widget.bridge.state_changed.connect(self.on_state)
        self.say(resumed=again)

    def save_table(self) -> None:
        """*Save table…*"""
        self.hand.press(self.hand.table.save, str(self.path.with_name(TABLE)))

    @property
    def steps(self) -> dict[str, Callable[[], None]]:
        steps = super().steps
        for name in ("close the session", "resume"):
            del steps[name]
        steps["start"] = self.begin
        return {"start" if name == "start" else name: act for name, act in steps.items()} | {
            "save the table": self.save_table,
            LAST_STEP: self.hand.leave,
        }

    def live(self, *, only_look: bool) -> None:
        for name, act in self.steps.items():
            if only_look and name not in ("open the image", "open the widget", "start", LAST_STEP):
                continue
            self.say(step=name, at=time.time())
            act()
            if name != LAST_STEP:
                self.hand.settle()


# --- whoever kills, and looks afterwards ---


class Moment(NamedTuple):
    """When to kill: so many seconds after a step has begun."""

    step: str
    wait_s: float


@dataclass
class Case:
    """A volume and everything that was told of the session on it.

    Attributes
    ----------
    home : folder of the sessions; the volume lies there too
    masks : object and digest of every mask that was acknowledged as accepted
    actions, facts : as of the newest acknowledgement
    labels : digest of the newest labels that were acknowledged
    saved : digests of labels that the saved file may hold
    found : what was found after the last kill; None if nothing was done so far
    """

    home: Path
    masks: list[tuple[int, str]] = field(default_factory=list)
    actions: int = 0
    facts: str = ""
    labels: str = ""
    saved: set[str] = field(default_factory=set)
    found: str | None = None

    @property
    def image(self) -> Path:
        return self.home / "volume.nii.gz"

    def take(self, lines: Sequence[dict[str, Any]]) -> None:
        """Remember what a life said, and compare what it showed after *Resume* with what was found."""
        fresh = True
        for line in lines:
            if "accepted" in line:
                self.masks.append((line["accepted"], line["mask"]))
            if "facts" in line:
                self.actions, self.facts, self.labels = line["actions"], line["facts"], line["labels"]
                if fresh and self.found is not None:
                    assert line["facts"] == self.found, "after Resume the window shows something else than was found after the kill"
                fresh = False
            if line.get("resumed") is False:
                assert self.found is None, "there was something to resume, but the window did not offer it"
            if line.get("step") == "save":
                self.saved.add(self.labels)

    def check(self) -> int:
        """Look at what a life left, without a window; returns the number of accepted masks that are lost.

        Raises
        ------
        AssertionError : something else is not as it was acknowledged
        """
        self._check_files()
        journal = journal_in(self.home)
        if journal is None:
            assert not self.actions, f"{self.actions} actions were acknowledged, and there is no journal"
            return len(self.masks)
        from napari_apprentice.journal import labels_of, read_journal, replay_labels

        header, events = read_journal(journal)
        assert len(events) >= self.actions, f"{self.actions} actions were acknowledged, and the journal has {len(events)}"
        accepts = [number for number, event in enumerate(events, start=1) if event.kind == "accept"]
        there = {(label, digest(labels_of(header, events[:n]) == label)) for n in accepts for label, _ in self.masks}
        if self.actions:
            assert self._resumed(journal, self.actions)[0] == self.facts, "as of the last acknowledged action the session is another one"
        self.found, labels = self._resumed(journal, len(events))
        assert digest(replay_labels(journal)) == digest(labels)
        return sum(mask not in there for mask in self.masks)

    def _resumed(self, journal: Path, actions: int) -> tuple[str, npt.NDArray[Any]]:
        """What the session is as of an action: of a copy, resumed without a window."""
        from napari_apprentice import files
        from napari_apprentice._napari.answers import State
        from napari_apprentice.assembly import resume_session

        with tempfile.TemporaryDirectory() as elsewhere:
            copy = shutil.copytree(journal.parent, Path(elsewhere) / "session")
            lines = journal.read_bytes().splitlines(keepends=True)
            (copy / journal.name).write_bytes(b"".join(lines[: actions + 1]))
            session = resume_session(copy, files.read(self.image))
            try:
                assert not session.read_only, session.read_only
                labels = np.array(session.labels)
                return facts(State.of(session), labels), labels
            finally:
                session.close()

    def _check_files(self) -> None:
        """Saved files are whole: the old or the new ones."""
        from napari_apprentice import files

        image = files.read(self.image)
        path = files.labels_path(image)
        if path.exists():
            assert digest(files.read_labels(path, like=image)) in self.saved, f"{path.name} holds other labels than were saved"
        table = self.home / TABLE
        if table.exists():
            text = table.read_text()
            head, *rows = csv.reader(text.splitlines())
            assert rows, "the table is empty"
            assert text.endswith("\n"), "the table is torn"
            assert all(len(row) == len(head) for row in rows), "the table is torn"


def lines_in(report: Path) -> list[dict[str, Any]]:
    """What a life has said so far."""
    text = report.read_text() if report.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def lived(case: Case, number: int, moment: Moment | None = None, *, only_look: bool = False) -> list[dict[str, Any]]:
    """Let a life begin, and kill it at a moment or, without one, let it end; what it said. A life may end before its moment."""
    report, errors = case.home / f"life{number}.jsonl", case.home / f"life{number}.txt"
    command = [sys.executable, __file__, "--life", str(case.home), "--tube", str(number % len(SMALL.centres)), "--report", str(report)]
    environment = {**os.environ, "APPRENTICE_HOME": str(case.home), "NAPARI_CONFIG": ""}
    with errors.open("wb") as err:
        process = subprocess.Popen([*command, *(["--only-look"] if only_look else [])], env=environment, stdout=err, stderr=err)
    try:
        end = time.monotonic() + PATIENCE_S
        while process.poll() is None and not (moment and any(line.get("step") == moment.step for line in lines_in(report))):
            assert time.monotonic() < end, f"nothing goes on any more: {errors.read_text()[-2000:]}"
            time.sleep(0.002)
        if moment is not None:
            time.sleep(moment.wait_s)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode in (0, -signal.SIGKILL), f"it died on its own: {errors.read_text()[-2000:]}"
    return lines_in(report)


@dataclass
class Fate:
    """What became of the lives that were killed in one step."""

    kills: int = 0
    actions: int = 0
    masks: int = 0
    lost: int = 0


def durations(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Seconds that every step of a life took; the last one, which nobody saw end, as long as the one before."""
    began = [(line["step"], line["at"]) for line in lines if "step" in line]
    took = {name: after - at for (name, at), (_, after) in pairwise(began)}
    return {**took, began[-1][0]: 0.5}


def kill(kills: int, seed: int, folder: Path) -> dict[str, Fate]:
    """Step -> what became of the lives that were killed in it."""
    chance = random.Random(seed)
    fates: dict[str, Fate] = {}
    steps: dict[str, float] = {}
    done = cases = 0
    while done < kills:
        case = Case(folder / f"case{cases}")
        case.home.mkdir(parents=True)
        SMALL.write(case.image, seed=cases)
        for number in range(LIVES):
            if not steps:
                case.take(lines := lived(case, number))
                assert lines[-1].get("step") == LAST_STEP, "the first life did not come to the end of the day"
                lost, steps = case.check(), durations(lines)
                assert lost == 0, f"{lost} masks are lost although nobody killed anything"
                print(f"the day takes {sum(steps.values()):.0f} s: {', '.join(f'{name} {s:.1f}' for name, s in steps.items())}", flush=True)
                continue
            if done == kills:
                break
            step = chance.choice(list(steps))
            lines = lived(case, number, Moment(step, chance.uniform(0, steps[step])))
            fell = [line["step"] for line in lines if "step" in line][-1]
            case.take(lines)
            fate = fates.setdefault(fell, Fate())
            lost = case.check()
            done += 1
            fate.kills, fate.actions = fate.kills + 1, fate.actions + case.actions
            fate.masks, fate.lost = fate.masks + len(case.masks), fate.lost + lost
            print(f"kill {done} in {fell!r}: {case.actions} actions, {len(case.masks)} accepted, {lost} lost", flush=True)
        case.take(lived(case, LIVES, only_look=True))
        cases += 1
    return {name: fates[name] for name in steps if name in fates}


NOTES = """
- A volume of 10 × 96 × 96 voxels and six objects; a new one after six lives. Seed {seed}.
- `kills`: of the process, by SIGKILL, while the step went on. `actions` and `masks`: how many the windows had acknowledged by then, added
  up over the kills; all of them were looked for after each. `lost`: accepted masks that the journal did not have.
- After each kill the session, resumed without a window from what was on the disk, was in all that a user can tell what the window had shown
  at its last acknowledgement; the saved labels and the saved table were whole; and a new window went on with it after *Resume*.
"""


def text(fates: dict[str, Fate], seed: int) -> str:
    from napari_apprentice import report

    total = Counter[str]()
    lines = []
    for step, fate in fates.items():
        total.update(vars(fate))
        lines.append({"step": step, **{name: str(value) for name, value in vars(fate).items()}})
    lines.append({"step": "**all**", **{name: f"**{value}**" for name, value in total.items()}})
    parts = [
        "# Is anything lost when the window dies?",
        "Written by `python benchmarks/kill_day.py --markdown docs/kills.md`: the day of [window.md](window.md), killed at random moments.",
        "\n".join([*report.host(report.machine("cpu")), *NOTES.strip().format(seed=seed).splitlines()]),
        report.table(lines),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--life", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--tube", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--only-look", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.life is not None:
        Life(options.life, Case(options.life).image, options.tube, options.report).live(only_look=options.only_look)
        return
    with tempfile.TemporaryDirectory() as folder:
        said = text(kill(options.kills, options.seed, Path(folder)), options.seed)
    print(said)
    if options.markdown:
        options.markdown.write_text(said)


if __name__ == "__main__":
    main()
