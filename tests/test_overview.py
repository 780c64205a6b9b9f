"""What can be asked of a session: asking changes nothing, and says what the labels and the journal say."""

from __future__ import annotations

import numpy as np
import pytest

from napari_apprentice.fakes import DiskSegmenter, FakePolicy, FakeStore
from napari_apprentice.journal import Journal
from napari_apprentice.overview import Overview
from napari_apprentice.session import Session
from napari_apprentice.types import Click, Image, Plane, SessionError

VOLUME = Image(np.random.default_rng(0).random((1, 5, 12, 10)), name="volume")


def test_asking_changes_nothing(tmp_path):
    session = Session(VOLUME, DiskSegmenter(2.0), FakePolicy(0.0, 0.5), journal=Journal.create(tmp_path, VOLUME), store=FakeStore())
    session.add(Click((2, 5, 5)))
    session.accept()
    session.propagate(1)
    session.add(Click((3, 8, 8)))
    asked = {
        "compare": lambda: session.compare(0, 1),
        "export": lambda: session.export(1, tmp_path / "version.json"),
        "peek": lambda: session.peek(Plane(0, 3)),
        "probability": session.probability,
        "slices": lambda: session.slices(1),
        "doubtful": session.doubtful,
        "advised": lambda: session.advised(1),
        "outdated": lambda: session.outdated(1),
    }
    asked |= {name: lambda name=name: getattr(session, name) for name, kind in vars(Overview).items() if isinstance(kind, property)}
    assert {name for name in vars(Overview) if not name.startswith("_")} == {name for name in asked if not name.startswith("_")}
    state, model = session._state, session._segmenter.snapshot()
    labels, journal = session.labels.copy(), (tmp_path / "journal.jsonl").read_bytes()
    for ask in asked.values():
        ask()
        assert session._state is state
        assert session._segmenter.snapshot() is model
    assert np.array_equal(session.labels, labels)
    assert (tmp_path / "journal.jsonl").read_bytes() == journal
    session.close()


def test_probabilities_are_those_of_the_open_object():
    session = Session(VOLUME, DiskSegmenter(2.0), FakePolicy())
    with pytest.raises(SessionError, match="expected a plane that was clicked in"):
        session.probability()
    session.add(Click((2, 5, 5)))
    session.add(Click((3, 8, 8)))
    np.testing.assert_array_equal(session.probability(Plane(0, 2)) > 0.5, session.labels[2] == 1)
    np.testing.assert_array_equal(session.probability() > 0.5, session.labels[3] == 1)
    session.accept()
    with pytest.raises(SessionError):
        session.probability(Plane(0, 2))
