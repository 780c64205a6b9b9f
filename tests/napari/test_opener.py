"""Sessions on their way: each comes to whoever asked for it, or is closed."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from napari.components import ViewerModel

from napari_apprentice._napari.contributions import image_layer
from napari_apprentice._napari.engine import Wish
from napari_apprentice._napari.opener import Opener
from napari_apprentice.types import Click, SessionError


@pytest.fixture
def layer(volume):
    data, arguments, _ = image_layer(volume)
    viewer = ViewerModel()
    made = viewer.add_image(data, **arguments)
    made.metadata["viewer"] = viewer  # for the fixture below
    return made


@pytest.fixture
def opener(layer, engine, errands):
    """``came`` is what was called back."""
    made = Opener(layer.metadata.pop("viewer"), engine, errands)
    made.came = []
    return made


def ask(opener, layer, wish=None) -> bool:
    return opener.open(layer, wish or Wish(), lambda *found: opener.came.append(found), lambda: opener.came.append(None))


def is_closed(session) -> bool:
    """Whether the journal takes no more: somebody else could go on with it."""
    try:
        session.add(Click((2, 20, 20)))
    except Exception:
        return True
    return False


def test_a_session_comes_to_whoever_asked_for_it(opener, layer, engine, errands):
    assert ask(opener, layer)
    assert opener.opening
    errands.wait()
    assert not opener.opening
    [(opened, left)] = opener.came
    assert opened.session is engine.session
    assert opened.folder == engine.session._journal.path.parent
    assert left is None
    assert not is_closed(opened.session)
    opener.close(opened.session)
    errands.wait()
    assert is_closed(opened.session)


@pytest.mark.parametrize("why", ["nobody waits", "the image is gone"])
def test_a_session_that_nobody_takes_is_closed(opener, layer, engine, errands, why):
    gate = threading.Event()
    errands.send("waiting", lambda: gate.wait(30), lambda _: None)
    ask(opener, layer)
    if why == "nobody waits":
        errands.drop_answers()
        opener.let_go()
    else:
        opener._viewer.layers.remove(layer)
    gate.set()
    errands.wait()
    errands.wait()
    assert not opener.opening
    assert opener.came == ([] if why == "nobody waits" else [None])
    assert is_closed(engine.session)


def test_what_cannot_be_opened_is_told(opener, layer, engine, errands, told):
    assert not ask(opener, opener._viewer.add_image(np.zeros((2, 3, 4, 5))))
    assert "expected a 2D image or a 3D volume" in told()[-1]
    assert not opener.opening
    engine.error = SessionError("no weights; expected some")
    assert ask(opener, layer)
    errands.wait()
    assert told()[-1] == "no weights; expected some"
    assert (opener.opening, opener.came) == (False, [None])


def test_the_newest_session_in_which_something_was_done_is_found(opener, layer, engine, errands):
    found: list[Path | None] = []
    opener.look_for_earlier(layer, found.append)
    errands.wait()
    ask(opener, layer)
    errands.wait()
    opener.look_for_earlier(layer, found.append)
    errands.wait()
    engine.session.add(Click((2, 20, 20)))
    opener.look_for_earlier(layer, found.append)
    errands.wait()
    assert found == [None, None, opener.came[0][0].folder]
    opener.look_for_earlier(opener._viewer.add_image(np.zeros((2, 3, 4, 5))), found.append)
    assert found[-1] is None
    opener.close(engine.session)
    errands.wait()


def changed(opener, session, folder, wish=None) -> None:
    opener.change_model(session, folder, wish or Wish(), lambda *answer: opener.came.append(answer))


def test_another_model_takes_the_work_over_and_the_session_before_is_closed(opener, layer, engine, errands):
    ask(opener, layer)
    errands.wait()
    before, folder = engine.session, opener.came.pop()[0].folder
    before.add(Click((2, 20, 20)))
    before.accept()
    before.add(Click((3, 10, 10)))
    changed(opener, before, folder)
    assert opener.changing
    errands.wait()
    errands.wait()
    assert not opener.changing
    [(opened, error)] = opener.came
    assert error is None
    assert opened.session is engine.session is not before
    assert opened.folder != folder
    assert opened.state.clicks == before.clicks
    np.testing.assert_array_equal(opened.labels == 1, before.labels == 1)
    assert is_closed(before)
    assert not is_closed(opened.session)
    opener.close(opened.session)
    errands.wait()


def test_where_the_model_does_not_come_the_session_goes_on(opener, layer, engine, errands):
    ask(opener, layer)
    errands.wait()
    before, folder = engine.session, opener.came.pop()[0].folder
    engine.error = SessionError("no such model; expected one")
    changed(opener, before, folder)
    errands.wait()
    [(opened, error)] = opener.came
    assert (opened.session, opened.folder, error) == (before, folder, engine.error)
    assert not is_closed(before)
    opener.close(before)
    errands.wait()


def test_a_model_that_comes_too_late_is_closed_and_the_session_is_left_to_who_let_it_go(opener, layer, engine, errands):
    ask(opener, layer)
    errands.wait()
    before, folder = engine.session, opener.came.pop()[0].folder
    gate = threading.Event()
    errands.send("waiting", lambda: gate.wait(30), lambda _: None)
    changed(opener, before, folder)
    errands.drop_answers()
    opener.let_go()
    gate.set()
    errands.wait()
    errands.wait()
    assert opener.came == []
    assert engine.session is not before
    assert is_closed(engine.session)
    assert not is_closed(before)
    opener.close(before)
    errands.wait()
