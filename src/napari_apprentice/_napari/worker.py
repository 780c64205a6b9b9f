"""One long-lived thread for everything that takes time, and the way back to the main thread."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from qtpy.QtCore import QObject, Signal

__all__ = ["QUIET_S", "Task", "Worker"]

QUIET_S = 0.5
"""So long after a task nothing is begun that is only done meanwhile: one task often leads to the next."""

_EXIT_PATIENCE_S = 30.0
_LOOK_EVERY_S = 0.2
_log = logging.getLogger(__name__)


def _nothing(_: Any) -> None:
    """Whoever submits a task need not care how it ends."""


@dataclass(frozen=True, eq=False)
class Task:
    """Something to do in the worker.

    Attributes
    ----------
    words : says what it is, for a status line ("predicting"); asked in the worker when its turn comes, and may say nothing
    work : runs in the worker thread and must touch nothing of napari or Qt. It may be a generator: where it
        yields it can be left alone for a while
    then : gets the result of ``work`` on the main thread
    otherwise : gets the exception of ``work`` on the main thread
    between : may be done while an earlier task is left alone
    lasting : writes a file that the user wants: the program does not end before, however long it takes
    """

    words: Callable[[], str]
    work: Callable[[], Any]
    then: Callable[[Any], None] = _nothing
    otherwise: Callable[[Exception], None] = _nothing
    between: bool = False
    lasting: bool = False


class Worker(QObject):
    """Does tasks one after the other, in the order they were submitted; but where one yields, those that come next and may be done
    `Task.between` are done first. While there is none, it takes the steps of what it was given to do `meanwhile`. Everything but the tasks'
    ``work``, and `wanted`, is for the main thread.

    A plain Python thread rather than a QThread, since a QThread that is collected while it runs ends the process.
    """

    activity_changed = Signal(str)
    """The words of the task that runs now; empty when there is nothing to do."""

    _began = Signal(str)
    _ended = Signal(object, object, object)

    def __init__(self) -> None:
        super().__init__()
        self._tasks: deque[Task | None] = deque()
        self._arrived = threading.Condition()
        self._meanwhile: Generator[None, None, Any] | None = None
        self._rests_since = time.monotonic()
        self._waiting = 0
        self._owed = 0
        self._closed = False
        self._began.connect(self._on_began)
        self._ended.connect(self._on_ended)
        self._thread = threading.Thread(target=self._serve, name="apprentice-worker", daemon=True)
        self._thread.start()
        # A daemon thread dies with the interpreter; what was asked for before the window closed is done first.
        atexit.register(self._finish_at_exit)

    @property
    def waiting(self) -> int:
        """How many tasks have been submitted and not been answered on the main thread yet."""
        return self._waiting

    @property
    def alive(self) -> bool:
        """Whether the thread still runs."""
        return self._thread.is_alive()

    def submit(self, task: Task) -> None:
        """Queue a task. A closed worker takes none, silently: the window is gone."""
        if self._closed:
            return
        self._waiting += 1
        self._put(task)

    def meanwhile(self, steps: Generator[None, None, Any] | None) -> None:
        """What to do while nothing else is to be done, in place of what that was so far; None for nothing. Nobody is told how it ends."""
        with self._arrived:
            self._meanwhile = None if self._closed else steps
            self._arrived.notify()

    @property
    def occupied(self) -> bool:
        """Whether there is something to do `meanwhile`."""
        with self._arrived:
            return self._meanwhile is not None

    @property
    def wanted(self) -> bool:
        """Whether something waits that may be done between the steps of a task; asked in the worker."""
        with self._arrived:
            return bool(self._tasks) and self._tasks[0] is not None and self._tasks[0].between

    def close(self) -> None:
        """Take no more tasks. Returns at once; the thread ends after what is queued, and its answers are dropped."""
        if self._closed:
            return
        self._closed = True
        self.meanwhile(None)
        self._began.disconnect(self._on_began)
        self._ended.disconnect(self._on_ended)
        self._put(None)

    def join(self, timeout_s: float) -> bool:
        """Wait for a closed worker's thread to end; True if it did."""
        self._thread.join(timeout_s)
        return not self.alive

    def _put(self, task: Task | None) -> None:
        with self._arrived:
            self._owed += task is not None and task.lasting
            self._tasks.append(task)
            self._arrived.notify()

    def _next(self) -> Task | None:
        while True:
            with self._arrived:
                self._arrived.wait_for(lambda: self._tasks or self._meanwhile)
                if self._arrived.wait_for(lambda: self._tasks, max(self._rests_since + QUIET_S - time.monotonic(), 0)):
                    return self._tasks.popleft()
                steps = self._meanwhile
            if steps is not None:
                self._go_on(steps)

    def _go_on(self, steps: Generator[None, None, Any]) -> None:
        """One step of what is to be done meanwhile."""
        try:
            next(steps)
        except Exception as ended:
            if not isinstance(ended, StopIteration):
                _log.warning("what was done meanwhile ended", exc_info=ended)
            with self._arrived:
                if self._meanwhile is steps:
                    self._meanwhile = None

    def _serve(self) -> None:
        while (task := self._next()) is not None:
            self._do(task)
        atexit.unregister(self._finish_at_exit)

    def _do(self, task: Task) -> None:
        self._emit(self._began, task.words())
        result, error = None, None
        try:
            result = task.work()
            if isinstance(result, Generator):
                result = self._through(result, task)
        except Exception as caught:
            error = caught
        self._rests_since = time.monotonic()
        if task.lasting:
            with self._arrived:
                self._owed -= 1
            if error is not None and self._closed:
                _log.error("%s failed after the window was closed: %s", task.words(), error)
        self._emit(self._ended, task, result, error)

    def _through(self, steps: Generator[None, None, Any], task: Task) -> Any:
        """What the steps of a task lead to; between them what waits and may be done there."""
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value
            while self.wanted and (other := self._next()) is not None:
                self._do(other)
                self._emit(self._began, task.words())

    @staticmethod
    def _emit(signal: Any, *args: Any) -> None:
        try:
            signal.emit(*args)
        except RuntimeError:  # Qt deleted the object while the application was closing
            _log.debug("an answer came after the window was gone")

    def _on_began(self, words: str) -> None:
        if words:
            self.activity_changed.emit(words)

    def _on_ended(self, task: Task, result: Any, error: Exception | None) -> None:
        self._waiting -= 1
        try:
            if error is None:
                task.then(result)
            else:
                task.otherwise(error)
        finally:
            if not self._waiting:
                self.activity_changed.emit("")

    def _finish_at_exit(self) -> None:
        """Wait for files that the user wants as long as it takes, and for anything else a while."""
        self._closed = True  # Qt takes its objects apart next
        self._put(None)
        end = time.monotonic() + _EXIT_PATIENCE_S
        while not self.join(_LOOK_EVERY_S) and (self._owed or time.monotonic() < end):
            pass
