"""An open session at work, on a desk of paper."""

from __future__ import annotations

import numpy as np
import pytest

from napari_apprentice._napari.answers import Answer, Opened, State
from napari_apprentice._napari.sitting import CLICK_PARTS, LABELS_KEPT
from napari_apprentice._napari.strokes import Stroke
from napari_apprentice.fakes import DiskSegmenter, FakePolicy
from napari_apprentice.session import Session
from napari_apprentice.types import Click

CLICKS = [Click((4, 20, col), positive) for col, positive in ((10, True), (14, True), (12, False), (30, True))]


def check_equal(sitting) -> None:
    """What the desk was told to show is what the session has."""
    desk, session = sitting.desk, sitting.session
    np.testing.assert_array_equal(desk.labels, session.labels)
    assert (desk.label, desk.clicks) == (session.label, session.clicks)
    assert sitting.state.label == session.label


def stroke(*where: slice, before: int, after: int) -> Stroke:
    shape = tuple(side.stop - side.start for side in where)
    return Stroke(where, np.ones(shape, bool), np.full(shape, before), np.full(shape, after))


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_wished_for_the_desk_shows_what_the_session_has(sitting, errands, seed):
    rng = np.random.default_rng(seed)
    square = slice(2, 3), slice(5, 12), slice(5, 12)
    wishes = {
        "click": lambda: sitting.click(Click((*map(int, rng.integers((8, 40, 50))),), bool(rng.random() < 0.7))),
        "undo": sitting.undo,
        "redo": sitting.redo,
        "accept": lambda: sitting.accept(lambda axis, label: None),
        "discard": lambda: sitting.act("discarding", lambda session: session.discard(), "discarded"),
        "paint": lambda: sitting.paint(stroke(*square, before=0, after=int(rng.integers(0, 4)))),
        "put back": sitting.put_back,
    }
    for name in rng.choice(list(wishes), 25, p=[0.5, 0.15, 0.1, 0.1, 0.05, 0.05, 0.05]):
        wishes[name]()
        if rng.random() < 0.3:
            errands.wait()
            check_equal(sitting)
    errands.wait()
    check_equal(sitting)
    assert sitting.desk.drawn


def test_clicks_show_at_once_and_their_labels_with_the_answer_to_the_newest(sitting, errands, gate):
    for count, click in enumerate(CLICKS, 1):
        sitting.click(click)
        assert sitting.desk.clicks == tuple(CLICKS[:count])
    assert sitting.desk.drawn == 0
    gate.set()
    errands.wait()
    assert sitting.desk.drawn == 1
    assert [state is None for state in sitting.told] == [True, False] * len(CLICKS)
    assert errands.heard[-1].startswith("good? press G")
    check_equal(sitting)


def test_who_is_let_go_shows_no_click_that_was_not_answered(sitting, errands, gate):
    sitting.click(CLICKS[0])
    sitting.split()
    errands.drop_answers()
    sitting.let_go()
    sitting.show()
    assert sitting.desk.clicks == ()
    assert sitting.told == [True, False]
    gate.set()
    errands.wait()
    assert sitting.desk.drawn == 0


def test_what_cannot_be_undone_is_said_unless_something_is_still_to_come(sitting, errands):
    sitting.undo()
    sitting.redo()
    assert errands.heard == ["there is nothing to undo", "there is nothing to redo"]
    sitting.click(CLICKS[0])
    sitting.undo()  # of the click that is not answered yet
    sitting.redo()
    errands.wait()
    assert sitting.session.clicks == (CLICKS[0],)
    check_equal(sitting)


def test_accepting_is_answered_twice_and_what_is_outdated_comes_after_learning(sitting, errands):
    again = []
    sitting.click(CLICKS[0])
    sitting.accept(lambda *_: again.append("nothing was propagated"))
    errands.wait()
    assert [state.label for state in sitting.told if state is not None] == [1, 2, 2]
    assert again == []

    sitting.act("propagating", lambda session: session.propagate(1, 0)[0], "")
    sitting.act("selecting", lambda session: session.select(1), "")
    sitting.click(Click((6, 20, 26)))
    sitting.accept(lambda axis, label: again.append((axis, label, len(sitting.session.pending))))
    errands.wait()
    assert again == [(0, 1, 0)]


def test_an_object_that_nobody_worked_on_is_said_to_teach_nothing(sitting, errands):
    sitting.paint(stroke(slice(2, 5), slice(5, 9), slice(5, 9), before=0, after=1))  # a ball of three slices
    sitting.accept(lambda *_: None)
    errands.wait()
    assert errands.heard[-1] == "accepted: object 1; it was neither clicked nor painted in, so it teaches nothing"
    assert sitting.session.finished == (1,)
    sitting.paint(stroke(slice(2, 3), slice(15, 19), slice(5, 9), before=0, after=2))
    sitting.accept(lambda *_: None)
    errands.wait()
    assert "accepted: object 2;" not in errands.heard[-1]


def test_seeds_show_in_the_place_of_clicks_until_the_object_is_split(sitting, errands):
    for col in (10, 20):
        sitting.click(Click((4, 20, col)))
    errands.wait()
    clicks, seeds = sitting.desk.clicks, (Click((4, 20, 8)), Click((4, 20, 22)))
    sitting.split()
    assert errands.heard[-1] == CLICK_PARTS
    assert sitting.desk.clicks == clicks
    sitting.click(seeds[0])
    assert (errands.heard[-1], sitting.desk.clicks) == (CLICK_PARTS, seeds[:1])
    sitting.click(seeds[1])
    assert errands.heard[-1].startswith("2 parts;")
    assert sitting.desk.clicks == seeds
    assert sitting.session.clicks == clicks
    sitting.split()
    assert sitting.desk.clicks == clicks
    errands.wait()
    assert errands.heard[-1] == "object 1 is split"
    check_equal(sitting)
    assert {int(sitting.session.labels[seed.voxel]) for seed in seeds} == {1, 2}
    assert [each for each in sitting.told if isinstance(each, bool)] == [True, False]


def test_without_seeds_nothing_is_split(splitting, errands):
    splitting.split()
    assert errands.heard[-2:] == [CLICK_PARTS, "nothing was split"]
    assert splitting.told[-2:] == [True, False]


def test_an_object_that_is_not_there_is_not_split(sitting, errands):
    sitting.split()
    assert errands.heard == ["object 1 has no mask yet, so there is nothing to split; Shift+O opens the object under the pointer"]
    assert sitting.told == [False]
    sitting.click(Click((4, 20, 10)))
    assert sitting.desk.clicks == (Click((4, 20, 10)),), "it is a click, no part"
    errands.wait()
    sitting.accept(lambda *_: None)
    errands.wait()
    sitting.split()
    assert errands.heard[-1].startswith("object 2 has no mask yet")


@pytest.fixture
def splitting(sitting, errands):
    """One object of two disks, about to be split."""
    for col in (10, 20):
        sitting.click(Click((4, 20, col)))
    errands.wait()
    sitting.split()
    return sitting


def test_a_part_that_is_not_in_the_object_is_not_taken(splitting, errands):
    splitting.click(Click((4, 20, 8)))
    splitting.click(Click((4, 2, 2)))
    assert errands.heard[-1].startswith("this place is not in object 1")
    splitting.click(Click((4, 20, 22)))
    splitting.split()
    errands.wait()
    assert errands.heard[-1] == "object 1 is split"


def test_undo_takes_back_the_part_named_last_and_then_the_wish_to_split(splitting, errands):
    clicks = splitting.session.clicks
    for col in (8, 22):
        splitting.click(Click((4, 20, col)))
    splitting.undo()
    assert splitting.desk.clicks == (Click((4, 20, 8)),)
    splitting.undo()
    assert [each for each in splitting.told if isinstance(each, bool)] == [True]
    splitting.undo()
    assert errands.heard[-1] == "nothing was split"
    assert [each for each in splitting.told if isinstance(each, bool)] == [True, False]
    errands.wait()
    assert splitting.session.clicks == clicks
    check_equal(splitting)


def test_one_part_is_no_split_and_the_next_one_may_still_be_named(splitting, errands):
    splitting.click(Click((4, 20, 8)))
    splitting.split()
    assert "one part is the whole object" in errands.heard[-1]
    splitting.click(Click((4, 20, 22)))
    splitting.split()
    errands.wait()
    assert errands.heard[-1] == "object 1 is split"


def test_who_opens_another_object_splits_none(splitting, errands):
    splitting.click(Click((4, 20, 8)))
    splitting.act("selecting", lambda session: session.select(5), "")
    errands.wait()
    assert [each for each in splitting.told if isinstance(each, bool)] == [True, False]
    check_equal(splitting)


def test_a_key_that_is_held_down_is_no_error(sitting, errands, told):
    sitting.click(CLICKS[0])
    for wish, done, nothing in ((sitting.undo, "undone", "undo"), (sitting.redo, "redone", "redo")):
        for _ in range(3):
            wish()
        errands.wait()
        assert [words for words in errands.heard if words in (done, f"there is nothing to {nothing}")][
            -1
        ] == f"there is nothing to {nothing}"
        check_equal(sitting)
    assert sitting.session.clicks == (CLICKS[0],)
    assert told() == []


def test_an_action_on_an_object_means_the_one_that_was_open_when_it_was_asked_for(sitting, errands):
    sitting.click(CLICKS[0])
    sitting.accept(lambda axis, label: None)
    sitting.act_on_object("naming", lambda session, label: session.name(label, "cell"), "object {} has a name")
    errands.wait()
    assert sitting.session.legend.names == {1: "cell"}
    assert sitting.session.label == 2
    assert sitting.desk.legend == sitting.session.legend


def test_a_refusal_is_told_and_shown_all_the_same(sitting, told):
    sitting.take(Answer(sitting.state, words="", error=ValueError("no")))
    assert told()[0].startswith("Something unexpected went wrong (ValueError: no)")
    assert sitting.told == [None, sitting.state]


def test_the_stroke_is_answered_before_its_answer_shows(sitting, errands):
    painted = stroke(slice(2, 3), slice(5, 9), slice(5, 9), before=0, after=1)
    sitting.paint(painted)
    assert sitting.desk.answered == []
    errands.wait()
    assert sitting.desk.answered == [painted]
    check_equal(sitting)


def test_labels_that_somebody_replaced_are_put_back(sitting, errands, told):
    sitting.click(CLICKS[0])
    errands.wait()
    sitting.desk.labels[:] = 7
    sitting.put_back()
    errands.wait()
    assert told() == [LABELS_KEPT]
    check_equal(sitting)


@pytest.mark.parametrize("whole", [True, False])
def test_it_goes_on_with_another_session_if_its_layers_are_there(sitting, errands, tube, whole):
    sitting.click(CLICKS[0])
    errands.wait()
    before = sitting.desk.labels.copy()
    other = Session(tube, DiskSegmenter(), FakePolicy())
    other.add(CLICKS[3])
    sitting.desk.whole = whole
    opened = Opened(other, sitting.desk.folder / "other", np.array(other.labels), State.of(other))
    assert sitting.go_on_with(opened) is whole
    assert (sitting.session, sitting.desk.folder, sitting.state) == (other, opened.folder, opened.state)
    if whole:
        check_equal(sitting)
    else:
        np.testing.assert_array_equal(sitting.desk.labels, before)
