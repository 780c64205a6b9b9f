"""An object that is carried through the volume, and the way through the slices that are doubtful."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from qtpy.QtCore import QCoreApplication, QEvent

from napari_apprentice._napari.answers import advice
from napari_apprentice._napari.carrier import Carrier
from napari_apprentice.types import Click, Plane


@pytest.fixture
def carrier(errands, sitting):
    """With an accepted object to carry; ``going`` is what it signals."""
    made, going = Carrier(errands, sitting._key_choice), []
    made.going_changed.connect(going.append)
    made.heard = going
    sitting.click(Click((4, 20, 24)))
    sitting.accept(lambda axis, label: None)
    errands.wait()
    return made


def test_carrying_is_one_at_a_time_and_ends_with_an_answer(carrier, sitting, errands):
    progress = []
    carrier.progressed.connect(lambda done, total: progress.append((done, total)))
    carrier.carry(sitting, 0)
    carrier.carry(sitting, 0)
    assert carrier.going
    errands.wait()
    assert not carrier.going
    assert carrier.heard == [True, False]
    assert progress == [(done, 7) for done in range(1, 8)]
    assert f"propagating: 7 of {7} slices …" in errands.heard
    assert errands.heard[-1].endswith("; U shows where a correction helps most")
    assert len(sitting.state.doubts) == 7


def test_an_object_that_is_named_is_carried_after_the_one_at_work(carrier, sitting, errands):
    carrier.carry(sitting, 0, label=1)
    carrier.carry(sitting, 1, label=1)
    errands.wait()
    assert carrier.heard == [True, False, True, False]


def test_called_off_nothing_is_carried_after_it(carrier, sitting, errands):
    carrier.carry(sitting, 0, label=1)
    carrier.carry(sitting, 1, label=1)
    carrier.cancel()
    errands.wait()
    assert carrier.heard == [True, False]


@pytest.mark.parametrize("end", ["cancel", "let_go"])
def test_called_off_or_let_go_everything_is_as_it_was(carrier, sitting, errands, end):
    gate, before = threading.Event(), sitting.session.labels.copy()
    errands.send("waiting", lambda: gate.wait(30), lambda _: None)
    carrier.carry(sitting, 0)
    if end == "cancel":
        carrier.cancel()
        assert carrier.going
    else:
        errands.drop_answers()
        carrier.let_go()
        assert not carrier.going
    gate.set()
    errands.wait()
    assert (errands.heard[-1] == "cancelled; everything is as it was") is (end == "cancel")
    assert carrier.heard == [True, False]
    assert sitting.session.doubtful() == []
    np.testing.assert_array_equal(sitting.session.labels, before)


def test_it_can_be_let_go_when_qt_has_deleted_it(carrier, sitting, errands):
    """As at the end of the application, where Python's half lives longer."""
    gate = threading.Event()
    errands.send("waiting", lambda: gate.wait(30), lambda _: None)
    carrier.carry(sitting, 0)
    carrier.deleteLater()
    QCoreApplication.sendPostedEvents(carrier, QEvent.Type.DeferredDelete.value)
    errands.drop_answers()
    carrier.let_go()
    assert not carrier.going
    gate.set()
    errands.wait()


def test_what_goes_wrong_ends_it_and_it_can_be_tried_again(carrier, sitting, errands, told):
    carrier.carry(sitting, 0, label=5)
    errands.wait()
    assert "object 5" in told()[0]
    assert not carrier.going
    carrier.carry(sitting, 0)
    errands.wait()
    assert len(sitting.state.doubts) == 7


def test_it_leads_through_all_doubtful_slices_and_begins_again(carrier, sitting, errands):
    carrier.carry(sitting, 0)
    errands.wait()
    order = [doubt.plane for doubt in advice(sitting.session)]
    assert len(order) == 7

    def led() -> Plane:
        carrier.lead(sitting)
        errands.wait()
        return sitting.desk.plane

    assert [led() for _ in range(9)] == [*order, *order[:2]]
    assert sitting.session.label == 1
    assert errands.heard[-1].startswith(f"slice {order[1].index} of object 1: expected IoU ")
    sitting.desk.plane = Plane(0, 4)  # the user looks elsewhere
    assert led() == order[0]
    assert led() == order[1]
    carrier.let_go()
    assert led() == order[0]


def test_an_object_that_is_begun_stays_open(carrier, sitting, errands):
    carrier.carry(sitting, 0)
    sitting.click(Click((2, 5, 5)))
    errands.wait()
    carrier.lead(sitting)
    errands.wait()
    assert errands.heard[-1].endswith("; accept object 2 before you correct it")
    assert sitting.session.label == 2


def test_without_doubts_it_leads_nowhere(carrier, sitting, errands):
    carrier.lead(sitting)
    assert errands.heard[-1] == "no slice is doubtful: propagate an object first"
    assert sitting.desk.plane == Plane(0, 4)
