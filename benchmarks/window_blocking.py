"""Does the window ever stand still? How long our code holds napari's main thread, through a day's work in a real window.

    python benchmarks/window_blocking.py [--markdown docs/window.md]     # needs a screen, see day.py

A timer in the main thread beats every 5 ms. Beside it a thread looks at the stack of the main thread as often as it gets to run, and adds
up how long every call of our code (from the first frame of the package on) stays there. What napari does when we call it (slicing, making
a layer) is part of such a call, and told apart; what napari does without us (drawing, most of all: without a graphics card that is work
for the processor) is counted by itself. While a beat is late although the main thread does nothing, somebody else holds Python's lock, and
that is counted as what the worker does. A call that lets the window go on meanwhile, in an event loop of its own, counts from beat to beat.
Time that a thread waited for a core of a busy machine is left out (Linux tells it). So is a collection of garbage, which Python does in
whatever call happens to be going on, and which takes the longer the more has been imported: it is told apart.
"""

from __future__ import annotations

import argparse
import gc
import inspect
import os
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from day import LARGE, Day, Hand

BAR_MS = 50.0
BEAT_MS, LATE_MS, SAMPLE_S = 5, 15.0, 0.001
PACKAGE = f"{os.sep}napari_apprentice{os.sep}"
THEIRS = tuple(f"{os.sep}{name}{os.sep}" for name in ("napari", "vispy", "app_model", "superqt"))

NOTES = """
- A volume of 60 × 512 × 512 voxels in a window of 1280 × 800, driven with mouse and keys by `benchmarks/day.py`; drawn without a graphics
  card. [Kills](kills.md) says what becomes of the work when the process is killed on the way.
- `our code`: the longest that one call of our code, `method`, held the main thread, without what napari did on its behalf (making and
  slicing layers); the next column has the longest call with that. `lock`: the longest that the main thread could not go on because the
  worker held Python's lock. `napari alone`: the longest that napari was busy without us, mostly drawing. Time spent waiting for a core
  of the machine is left out. A step lasts until all its work is done.
- `garbage`: the longest that Python collected garbage, which stops every thread; in none of the other columns.
- napari calls readers and makes widgets in the main thread and waits for them. A call that lets the window go on meanwhile counts from one
  beat of the window to the next. Adding and removing layers, at the start and at the end of a session, is napari's own work.
"""


# --- what holds the main thread ---


def clocks(thread: int) -> tuple[float, float]:
    """Seconds that a thread has computed, and that it has waited for a core."""
    try:
        spent, waited = Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[:2]
    except (OSError, ValueError):
        return 0.0, 0.0
    return int(spent) / 1e9, int(waited) / 1e9


class Frame(NamedTuple):
    """What is to be known of a Python frame. The frame itself must not be kept: its variables, painters for one, would live on with it."""

    identity: int
    path: str
    name: str

    @property
    def ours(self) -> bool:
        return PACKAGE in self.path

    @property
    def theirs(self) -> bool:
        return any(part in self.path for part in THEIRS)


def stack_of(thread: int | None) -> list[Frame]:
    """The stack of a thread, outermost frame first."""
    stack, frame = [], sys._current_frames().get(thread or 0)
    while frame is not None:
        code = frame.f_code
        stack.append(Frame(id(frame), code.co_filename, f"{Path(code.co_filename).stem}.{code.co_qualname}:{frame.f_lineno}"))
        frame = frame.f_back
    return stack[::-1]


@dataclass
class Hold:
    """One call that stays in the main thread, or one time in which the main thread could not go on."""

    kind: str
    name: str
    ms: float = 0.0
    theirs_ms: float = 0.0
    inner: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def own_ms(self) -> float:
        return self.ms - self.theirs_ms


class Watch:
    """Looks at the main thread until `stop`. `holds` are the calls and waits of the step that goes on."""

    def __init__(self) -> None:
        from qtpy.QtCore import QTimer

        self.holds: list[Hold] = []
        self._beat = time.perf_counter()
        self._timer = QTimer()
        self._timer.timeout.connect(self._on_beat)
        self._timer.start(BEAT_MS)
        self._main, self._main_native = threading.get_ident(), threading.get_native_id()
        self._collecting, self._collected_s = 0.0, 0.0
        gc.callbacks.append(self._on_garbage)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _on_beat(self) -> None:
        self._beat = time.perf_counter()

    def _on_garbage(self, phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            self._collecting = time.perf_counter()
            return
        took_s = time.perf_counter() - self._collecting
        self._collected_s += took_s
        self.holds.append(Hold("garbage", "Python", 1000 * took_s))

    def stop(self) -> None:
        gc.callbacks.remove(self._on_garbage)
        self._stopped.set()
        self._thread.join()
        self._timer.stop()

    @contextmanager
    def step(self) -> Iterator[list[Hold]]:
        holds: list[Hold] = []
        self.holds = holds
        yield holds
        self.holds = []

    def _look(self) -> None:
        then, main_then = time.perf_counter(), clocks(self._main_native)
        worker_then: dict[int, tuple[float, float]] = {}
        own_then = clocks(threading.get_native_id())
        identity, hold, beat, collected_then = 0, None, self._beat, 0.0
        while not self._stopped.is_set():
            time.sleep(SAMPLE_S)
            stack = stack_of(self._main)
            now, main_now = time.perf_counter(), clocks(self._main_native)
            workers = {t.native_id: t.ident for t in threading.enumerate() if t.name == "apprentice-worker" and t.native_id is not None}
            worker_now = {native: clocks(native) for native in workers}
            own_now = clocks(threading.get_native_id())
            collected, collected_then = self._collected_s - collected_then, self._collected_s
            passed_ms = 1000 * max(now - then - (main_now[1] - main_then[1]) - collected, 0.0)
            busy = 1000 * (main_now[0] - main_then[0]) > 0.3 * passed_ms
            if not busy:  # it may wait for Python's lock, which a thread keeps that itself waits for a core
                others = [own_now[1] - own_then[1], *(worker_now[i][1] - before[1] for i, before in worker_then.items() if i in worker_now)]
                passed_ms = max(passed_ms - 1000 * max(others), 0.0)
            late = 1000 * (now - self._beat) > LATE_MS
            computed = {native: worker_now[native][0] - before[0] for native, before in worker_then.items() if native in worker_now}
            worker = max(computed, key=lambda native: computed[native], default=None)
            ours = next((k for k, frame in enumerate(stack) if frame.ours), None)
            if ours is not None:
                kind, who, key = "ours", stack[ours].name.rpartition(":")[0], stack[ours].identity
                inner = [frame for frame in stack if frame.ours][-1].name
            elif not busy and late and worker is not None and 1000 * computed[worker] > 0.3 * passed_ms:
                kind, who, key = "lock", "the worker", 1
                inner = next((frame.name for frame in reversed(stack_of(workers[worker])) if frame.ours), "?")
            elif busy and any(frame.theirs for frame in stack):
                kind, who, key, inner = "napari", "napari", 2, stack[-1].name
            else:
                kind, who, key, inner = "", "", 0, ""
            if key != identity or self._beat != beat:
                identity, beat, hold = key, self._beat, Hold(kind, who) if kind else None
                if hold is not None:
                    self.holds.append(hold)
            if hold is not None:
                hold.ms += passed_ms
                hold.inner[inner] += passed_ms
                if ours is not None and any(frame.theirs for frame in stack[ours:]):
                    hold.theirs_ms += passed_ms
            then, main_then, worker_then, own_then = now, main_now, worker_now, own_now


# --- the table ---


def longest(holds: list[Hold], kind: str, *, own: bool = False) -> Hold:
    """The hold of a kind that took longest; with ``own`` without what napari did on its behalf."""
    return max((hold for hold in holds if hold.kind == kind), key=lambda hold: hold.own_ms if own else hold.ms, default=Hold(kind, ""))


def row_of(holds: list[Hold]) -> dict[str, str]:
    """What was longest in a step."""
    ours = longest(holds, "ours", own=True)
    return {
        "our code ms": f"{ours.own_ms:.0f}",
        "method": f"`{ours.name}`" if ours.own_ms >= 1 else "",
        "with napari's part ms": f"{longest(holds, 'ours').ms:.0f}",
        "lock ms": f"{longest(holds, 'lock').ms:.0f}",
        "napari alone ms": f"{longest(holds, 'napari').ms:.0f}",
        "garbage ms": f"{longest(holds, 'garbage').ms:.0f}",
    }


def explain(holds: list[Hold]) -> None:
    """What was long, for whoever wants to shorten it."""
    for hold in sorted(holds, key=lambda h: -h.ms):
        if hold.kind in ("ours", "lock") and hold.ms > BAR_MS / 2:
            places = ", ".join(f"{place} {ms:.0f}" for place, ms in sorted(hold.inner.items(), key=lambda i: -i[1])[:6])
            print(f"    {hold.kind} {hold.ms:.0f} ms ({hold.theirs_ms:.0f} in napari) {hold.name}: {places}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["APPRENTICE_HOME"] = home
        os.environ["NAPARI_CONFIG"] = ""
        hand = Hand()
        day = Day(hand, LARGE.write(Path(home) / "stack.nii.gz"))
        watch, lines, worst = Watch(), [], []
        for name, act in day.steps.items():
            with watch.step() as holds:
                act()
                hand.settle()
            lines.append({"step": name, "what": inspect.getdoc(act) or "", **row_of(holds)})
            worst += holds
            words = hand.widget.status.words if hand.widget else ""
            print("  ".join(f"{key} {value}" for key, value in lines[-1].items()), "|", words, flush=True)
            explain(holds)
        watch.stop()
        hand.leave()
    said = verdict(worst)
    print(said)
    if options.markdown:
        options.markdown.write_text(text(lines, said))


def verdict(holds: list[Hold]) -> str:
    """Over all steps."""
    ours, lock = longest(holds, "ours", own=True), longest(holds, "lock")
    met = "met" if max(ours.own_ms, lock.ms) <= BAR_MS else "not met"
    return (
        f"Our own code held the main thread for at most {ours.own_ms:.0f} ms (`{ours.name}`), and the worker kept it waiting for at most "
        f"{lock.ms:.0f} ms. The bar is {BAR_MS:.0f} ms: {met}."
    )


def text(lines: list[dict[str, str]], verdict: str) -> str:
    from napari_apprentice import report

    return "\n".join(
        [
            "# Does the window stand still?",
            "",
            "Written by `python benchmarks/window_blocking.py --markdown docs/window.md`.",
            "",
            *report.host(report.machine("cpu")),
            *NOTES.strip().splitlines(),
            "",
            report.table(lines),
            "",
            verdict,
            "",
        ]
    )


if __name__ == "__main__":
    main()
