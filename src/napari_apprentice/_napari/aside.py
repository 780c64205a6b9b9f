"""Work that napari waits for in its main thread, done in another one while the window goes on drawing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from qtpy.QtCore import QEventLoop, QObject, Qt, QThread, QTimer, Signal
from qtpy.QtWidgets import QApplication, QProgressDialog

__all__ = ["aside"]

_AT_ONCE_S = 0.02
"""What takes no longer needs no event loop."""
_PATIENCE_S = 0.5
"""What takes longer may be called off, where it can be."""

_Result = TypeVar("_Result")


class _Bell(QObject):
    """Rings in the main thread, from another one."""

    rung = Signal()


def aside(work: Callable[[], _Result], *, words: str = "", cancel: Callable[[], None] | None = None) -> _Result:
    """Do ``work`` in a thread of its own and return what it returns, or raise what it raises.

    napari calls readers, writers and makers of widgets in its main thread and waits for them. Meanwhile a loop draws, lets timers go on
    and lets our worker's answers in, but keeps back what the user does, so that nobody opens a second file into the middle of a first one.
    Without a window, or in another thread than that of the window, this is ``work()``.

    Parameters
    ----------
    work : must touch nothing of napari or Qt, and not hold Python's lock for long at a stretch
    words : what goes on, for the user
    cancel : lets ``work`` come to an end early; a dialog offers it, if there is time to
    """
    app = QApplication.instance()
    if not isinstance(app, QApplication) or app.thread() != QThread.currentThread():
        return work()
    future: Future[_Result] = Future()
    bell, loop = _Bell(), QEventLoop()
    bell.rung.connect(loop.quit)  # it lies in this thread's queue, so it is not lost if the loop has not begun

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)
        finally:
            bell.rung.emit()

    thread = threading.Thread(target=run, name="apprentice-aside", daemon=True)
    thread.start()
    thread.join(_AT_ONCE_S)
    if thread.is_alive():
        app.setOverrideCursor(Qt.CursorShape.BusyCursor)
        timer = QTimer(singleShot=True, interval=round(1000 * _PATIENCE_S))
        if cancel is not None:
            timer.timeout.connect(lambda: None if future.done() else _offer(cancel, words, bell))
            timer.start()
        try:
            _draw(loop)
        finally:
            timer.stop()
            app.restoreOverrideCursor()
    thread.join()  # who ends the application ends the loop, too
    return future.result()


def _offer(cancel: Callable[[], None], words: str, bell: _Bell) -> None:
    """A dialog that lets the user call it off, and takes all else that the user does, until the bell rings."""
    dialog = QProgressDialog(words, "Cancel", 0, 0, QApplication.activeWindow())
    dialog.canceled.connect(cancel)
    bell.rung.connect(dialog.accept)
    dialog.exec()
    dialog.deleteLater()


def _draw(loop: QEventLoop) -> None:
    """Until the loop is told to quit. Its own function, so that who looks at the stack sees that nothing of ours holds the main thread."""
    loop.exec(QEventLoop.ProcessEventsFlag.ExcludeUserInputEvents)
