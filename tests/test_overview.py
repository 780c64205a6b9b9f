"""What can be asked of a session: asking changes nothing, and says what the labels and the journal say."""

from __future__ import annotations

import numpy as np

from napari_apprentice.fakes import DiskSegmenter, FakePolicy, FakeStore
from napari_apprentice.journal import Journal
from napari_apprentice.overview import Overview
from napari_apprentice.session import Session
from napari_apprentice.types import Click, Image, Plane

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
