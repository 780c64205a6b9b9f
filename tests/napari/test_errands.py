"""What is sent to the worker: whose answer still counts, and what the user reads meanwhile."""

from __future__ import annotations

import pytest

from napari_apprentice.types import SessionError


@pytest.mark.parametrize("late", [False, True])
def test_every_answer_goes_to_exactly_one_of_those_who_may_want_it(errands, gate, late):
    counted, dropped = [], []
    for number in range(5):
        errands.send("counting", lambda n=number: n, counted.append, dropped=dropped.append)
    if late:
        errands.drop_answers()
    errands.send("counting", lambda: 5, counted.append, dropped=dropped.append)
    gate.set()
    errands.wait()
    assert (counted, dropped) == (([5], [0, 1, 2, 3, 4]) if late else ([0, 1, 2, 3, 4, 5], []))


@pytest.mark.parametrize("late", [False, True])
def test_an_error_is_told_even_to_those_who_do_not_wait(errands, gate, late, told):
    def refuse():
        raise SessionError("nothing of the kind; expected something else")

    gone = []
    errands.send("trying", refuse, gone.append, lambda: gone.append("failed"), gone.append)
    if late:
        errands.drop_answers()
    gate.set()
    errands.wait()
    assert told() == ["nothing of the kind; expected something else"]
    assert gone == ([] if late else ["failed"])


def test_an_unexpected_error_is_told_with_its_kind(errands, told, caplog):
    errands.send("trying", lambda: 1 / 0, lambda _: None)
    errands.wait()
    assert told()[0].startswith("Something unexpected went wrong (ZeroDivisionError: division by zero)")
    assert caplog.records[-1].exc_info


def test_what_was_said_shows_when_nothing_goes_on_any_more(errands, gate):
    errands.say("first")
    errands.say("second")
    gate.set()
    errands.wait()
    assert errands.heard == ["waiting …", "second"]
    errands.say("third")
    assert errands.heard[2:] == ["third"]


def test_at_first_it_says_what_it_was_made_with(errands):
    busy = []
    errands.busy_changed.connect(busy.append)
    errands.send(lambda: "asked for late", lambda: None, lambda _: None)
    errands.wait()
    assert errands.heard == ["asked for late …", "nothing goes on"]
    assert busy == [True, False]
