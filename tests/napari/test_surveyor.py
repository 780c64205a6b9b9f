"""The slices of the object at work: asked for once, however often somebody wants to know."""

from __future__ import annotations

import pytest

from napari_apprentice._napari.surveyor import Surveyor
from napari_apprentice.types import Click, Plane


@pytest.fixture
def surveyor(errands):
    made = Surveyor(errands)
    made.views = []
    made.found.connect(made.views.append)
    return made


def test_many_questions_are_one_and_its_answer_is_the_newest(surveyor, sitting, errands, gate):
    sitting.click(Click((4, 20, 24)))
    for _ in range(5):
        surveyor.survey(sitting.desk)
    assert surveyor.views == []
    gate.set()
    errands.wait()
    [view] = surveyor.views
    assert (view.label, view.axis, view.flipped) == (1, 0, False)
    assert view.slices == sitting.session.slices(1, 0)
    surveyor.survey(sitting.desk)
    errands.wait()
    assert len(surveyor.views) == 2


def test_a_volume_that_was_turned_meanwhile_is_asked_about_again(surveyor, sitting, errands, gate):
    surveyor.survey(sitting.desk)
    sitting.desk.plane, sitting.desk.flipped = Plane(2, 20), True
    gate.set()
    errands.wait()
    errands.wait()
    assert [(view.axis, view.flipped, len(view.slices)) for view in surveyor.views] == [(0, False, 8), (2, True, 50)]


def test_where_no_slice_is_shown_there_is_nothing(surveyor, sitting):
    surveyor.survey(None)
    sitting.desk.plane = None
    surveyor.survey(sitting.desk)
    assert surveyor.views == [None, None]


def test_who_is_let_go_may_ask_again(surveyor, sitting, errands, gate):
    surveyor.survey(sitting.desk)
    errands.drop_answers()
    surveyor.let_go()
    surveyor.survey(sitting.desk)
    gate.set()
    errands.wait()
    assert len(surveyor.views) == 1


def test_a_question_that_fails_is_told_and_may_be_asked_again(surveyor, sitting, errands, monkeypatch, told):
    monkeypatch.setattr(sitting.session, "slices", lambda *_: 1 / 0)
    surveyor.survey(sitting.desk)
    errands.wait()
    assert "ZeroDivisionError" in told()[0]
    monkeypatch.undo()
    surveyor.survey(sitting.desk)
    errands.wait()
    assert len(surveyor.views) == 1
