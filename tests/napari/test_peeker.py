"""The untaught model's answer: shown while it is wanted, and only to the clicks that there are."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from napari_apprentice._napari.peeker import Peeker
from napari_apprentice.types import Click, Plane

HERE, THERE = Click((4, 20, 24)), Click((6, 10, 10))


@pytest.fixture
def peeker(errands, sitting, monkeypatch):
    """With clicks in two slices; ``asked`` are the planes that the session was asked about."""
    made, peek = Peeker(errands), sitting.session.peek
    made.asked = []
    monkeypatch.setattr(sitting.session, "peek", lambda plane: made.asked.append(plane) or peek(plane))
    for click in (HERE, THERE):
        sitting.click(click)
    errands.wait()
    return made


def test_the_answer_is_asked_for_once_and_shows_as_long_as_it_is_wanted(peeker, sitting, errands):
    rows, cols = np.ogrid[:40, :50]
    untaught = (rows - 20) ** 2 + (cols - 24) ** 2 <= 5.0**2
    assert (sitting.session.labels[4] == 1).sum() > untaught.sum()  # the disks have grown since
    for _ in range(3):
        peeker.peek(True, sitting)
        errands.wait()
        [(plane, mask)] = sitting.desk.outlined
        assert plane == HERE.plane
        np.testing.assert_array_equal(mask, untaught)
        assert errands.heard[-1] == "outlined: what the untaught model would have said"
        peeker.peek(False, sitting)
        assert sitting.desk.outlined == []
        assert errands.heard[-1] == sitting.next_click, "nothing is outlined any more"
    assert peeker.asked == [HERE.plane]


@pytest.mark.parametrize(
    ("shown", "about"), [(HERE.plane, HERE.plane), (THERE.plane, THERE.plane), (Plane(0, 1), THERE.plane), (None, THERE.plane)]
)
def test_it_is_about_the_slice_that_is_shown_or_the_newest_click(peeker, sitting, errands, shown, about):
    sitting.desk.plane = shown
    peeker.peek(True, sitting)
    errands.wait()
    assert [plane for plane, _ in sitting.desk.outlined] == peeker.asked == [about]


def test_forgotten_it_is_asked_for_again(peeker, sitting, errands):
    for _ in range(2):
        peeker.peek(True, sitting)
        errands.wait()
        peeker.let_go()
    assert len(peeker.asked) == 2


@pytest.mark.parametrize("meanwhile", ["released", "another click"])
def test_an_answer_that_comes_too_late_is_not_shown(peeker, sitting, errands, meanwhile):
    gate = threading.Event()
    errands.send("waiting", lambda: gate.wait(30), lambda _: None)
    if meanwhile == "another click":
        sitting.click(Click((4, 30, 30)))  # answered before the untaught model is asked
    peeker.peek(True, sitting)
    if meanwhile == "released":
        peeker.peek(False, sitting)
    gate.set()
    errands.wait()
    assert len(peeker.asked) == 1
    assert sitting.desk.outlined == []


def test_another_state_takes_the_outline_away(peeker, sitting, errands):
    peeker.peek(True, sitting)
    errands.wait()
    peeker.overtake(sitting.desk)
    assert sitting.desk.outlined == []


def test_there_is_nothing_to_ask_without_a_click_or_a_session(errands, sitting):
    peeker = Peeker(errands)
    peeker.peek(True, None)
    assert errands.heard == []
    peeker.peek(True, sitting)
    assert errands.heard == ["click on an object first, then see what the untaught model would have said"]
    assert sitting.desk.outlined == []
