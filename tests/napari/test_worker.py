from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from napari_apprentice._napari.worker import QUIET_S, Task, Worker


@pytest.fixture
def worker(qtbot):
    made = Worker()
    yield made
    made.close()
    assert made.join(60)


def test_tasks_run_in_order_in_one_other_thread_and_answer_on_the_main_one(worker, qtbot):
    threads, answers, homes = [], [], []

    def then(result):
        answers.append(result)
        homes.append(threading.current_thread())

    for number in range(20):
        worker.submit(Task(lambda: "counting", lambda n=number: threads.append(threading.current_thread()) or n, then))
    qtbot.waitUntil(lambda: worker.waiting == 0, timeout=30_000)
    assert answers == list(range(20))
    assert set(homes) == {threading.main_thread()}
    assert len(set(threads)) == 1
    assert threads[0] is not threading.main_thread()


def test_an_error_reaches_otherwise_and_the_next_task_runs(worker, qtbot):
    errors, answers = [], []
    worker.submit(Task(lambda: "failing", lambda: 1 / 0, answers.append, errors.append))
    worker.submit(Task(lambda: "working", lambda: "fine", answers.append))
    qtbot.waitUntil(lambda: worker.waiting == 0, timeout=30_000)
    assert [type(error) for error in errors] == [ZeroDivisionError]
    assert answers == ["fine"]


def test_it_says_what_it_does_and_when_it_rests(worker, qtbot):
    said = []
    worker.activity_changed.connect(said.append)
    worker.submit(Task(lambda: "one", lambda: None))
    worker.submit(Task(lambda: "two", lambda: None))
    qtbot.waitUntil(lambda: worker.waiting == 0, timeout=30_000)
    assert said == ["one", "two", ""]


def test_close_returns_at_once_finishes_the_queue_and_drops_the_answers(qtbot):
    worker, gate, done, answers = Worker(), threading.Event(), [], []
    worker.submit(Task(lambda: "waiting", lambda: gate.wait(30), answers.append))
    worker.submit(Task(lambda: "saving", lambda: done.append("saved"), answers.append))
    worker.close()
    worker.submit(Task(lambda: "too late", lambda: done.append("too late")))
    assert worker.alive
    gate.set()
    assert worker.join(60)
    qtbot.wait(20)
    assert done == ["saved"]
    assert answers == []


def test_what_is_queued_is_done_before_the_program_ends(tmp_path):
    script = f"""
import pathlib, time
from qtpy.QtCore import QCoreApplication
from napari_apprentice._napari.worker import QUIET_S, Task, Worker
application = QCoreApplication([])
worker = Worker()
worker.submit(Task(lambda: "saving", lambda: (time.sleep(0.5), pathlib.Path({str(tmp_path / "saved")!r}).touch())))
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize("lasting", [True, False])
def test_the_program_waits_for_files_as_long_as_it_takes_and_for_nothing_else(tmp_path, lasting):
    script = f"""
import pathlib, time
from qtpy.QtCore import QCoreApplication
from napari_apprentice._napari import worker as module
module._EXIT_PATIENCE_S = 0.3
application = QCoreApplication([])
worker = module.Worker()
worker.submit(module.Task(lambda: "learning", lambda: time.sleep(1.0)))
worker.submit(module.Task(lambda: "saving", lambda: pathlib.Path({str(tmp_path / "saved")!r}).touch(), lasting={lasting}))
worker.submit(module.Task(lambda: "practising", lambda: time.sleep(60)))
worker.close()
"""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    assert (tmp_path / "saved").exists() == lasting
    assert time.monotonic() - began < 50


def test_a_program_that_ends_without_closing_its_window_ends_quietly():
    script = """
import atexit
from PyQt6 import sip
from qtpy.QtCore import QCoreApplication
from napari_apprentice._napari.worker import Worker
def destroy():
    sip.delete(worker)  # as Qt does with a window that nobody closed, and whose end closes the worker
    worker.close()
atexit.register(destroy)
application = QCoreApplication([])
worker = Worker()
"""
    ended = subprocess.run([sys.executable, "-c", script], check=True, timeout=120, capture_output=True, text=True)
    assert ended.stderr == ""


def test_a_file_that_could_not_be_written_after_the_window_was_closed_is_told(qtbot, caplog):
    worker, gate = Worker(), threading.Event()
    worker.submit(Task(lambda: "waiting", lambda: gate.wait(30)))
    worker.submit(Task(lambda: "saving", lambda: 1 / 0, lasting=True))
    worker.close()
    gate.set()
    assert worker.join(60)
    assert "saving failed after the window was closed: division by zero" in caplog.text


def test_what_may_come_between_the_steps_of_a_task_does_and_the_rest_waits(worker, qtbot):
    begun, gate, done, answers, said = threading.Event(), threading.Event(), [], [], []
    worker.activity_changed.connect(said.append)

    def steps():
        done.append("one")
        begun.set()
        gate.wait(30)
        yield
        done.append("two")
        yield
        return "learnt"

    def short(name, between):
        worker.submit(Task(lambda: name, lambda: done.append(name), lambda _: answers.append(name), between=between))

    worker.submit(Task(lambda: "learning", steps, answers.append))
    assert begun.wait(30)
    short("click", between=True)
    short("undo", between=True)
    short("accept", between=False)
    short("later click", between=True)
    gate.set()
    qtbot.waitUntil(lambda: worker.waiting == 0, timeout=30_000)
    assert done == ["one", "click", "undo", "two", "accept", "later click"]
    assert answers == ["click", "undo", "learnt", "accept", "later click"]
    assert said == ["learning", "click", "learning", "undo", "learning", "accept", "later click", ""]


def test_steps_that_fail_reach_otherwise(worker, qtbot):
    errors = []

    def steps():
        yield
        raise ZeroDivisionError

    worker.submit(Task(lambda: "", steps, otherwise=errors.append))
    qtbot.waitUntil(lambda: worker.waiting == 0, timeout=30_000)
    assert [type(error) for error in errors] == [ZeroDivisionError]


def counting(found, most=10**6):
    """Steps that count themselves."""
    for _ in range(most):
        found.append(threading.current_thread())
        yield


def test_meanwhile_it_takes_steps_and_tasks_come_first(worker, qtbot):
    steps, counts = [], []
    worker.meanwhile(counting(steps))
    qtbot.waitUntil(lambda: len(steps) > 3, timeout=30_000)
    assert worker.occupied
    assert worker.waiting == 0
    gate = threading.Event()
    worker.submit(Task(lambda: "waiting", lambda: gate.wait(30)))
    worker.submit(Task(lambda: "counting", lambda: counts.append(len(steps))))
    worker.submit(Task(lambda: "counting", lambda: counts.append(len(steps))))
    gate.set()
    qtbot.waitUntil(lambda: worker.waiting == 0, timeout=30_000)
    assert counts[0] == counts[1]  # not between two tasks that waited
    ended = time.monotonic()
    qtbot.waitUntil(lambda: len(steps) > counts[1] + 3, timeout=30_000)
    assert time.monotonic() > ended + 0.8 * QUIET_S  # the next task might have come
    assert threading.main_thread() not in steps
    worker.meanwhile(None)
    assert not worker.occupied


def test_meanwhile_ends_by_itself_and_says_nothing(worker, qtbot):
    steps, said = [], []
    worker.activity_changed.connect(said.append)
    worker.meanwhile(counting(steps, 5))
    qtbot.waitUntil(lambda: not worker.occupied, timeout=30_000)
    assert len(steps) == 5
    assert said == []


def test_what_fails_meanwhile_ends_and_tasks_go_on(worker, qtbot, caplog):
    answers = []

    def failing():
        yield
        raise OSError("no more room")

    worker.meanwhile(failing())
    qtbot.waitUntil(lambda: not worker.occupied, timeout=30_000)
    worker.submit(Task(lambda: "working", lambda: "fine", answers.append))
    qtbot.waitUntil(lambda: worker.waiting == 0, timeout=30_000)
    assert answers == ["fine"]
    assert "no more room" in caplog.text


def test_a_closed_worker_does_nothing_meanwhile(qtbot):
    worker, steps = Worker(), []
    worker.meanwhile(counting(steps))
    worker.close()
    assert worker.join(60)
    worker.meanwhile(counting(steps))
    assert not worker.occupied
