"""What objects cost, from journals of which every time is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from napari_apprentice.fakes import DiskSegmenter, FakePolicy, FakeStore
from napari_apprentice.journal import Event, Header, Journal
from napari_apprentice.measure import Work
from napari_apprentice.session import Session
from napari_apprentice.types import Click, Image, ReadError
from napari_apprentice.versions import Version
from napari_apprentice.work import PAUSE_S, active_seconds, seconds_between, work_in, work_of

IMAGE = Image(np.random.default_rng(0).normal(100, 10, (1, 5, 30, 40)), name="scan")
HEADER = Header("scan", "", IMAGE.shape, (), "pixel", "", time="2026-01-01T10:00:00+00:00")


def events(*actions):
    """``(second, kind, label, further facts)`` as events of a journal."""
    made = []
    for number, (second, kind, label, *more) in enumerate(actions, start=1):
        time = f"2026-01-01T10:{second // 60:02d}:{second % 60:02d}.500000+00:00"
        made.append(Event(kind, label, sequence=number, time=time, **(more[0] if more else {})))
    return tuple(made)


def learnt(number):
    return {"version": Version(number, parent=number - 1)}


def test_time_belongs_to_the_object_of_the_action_that_ends_it_and_pauses_do_not_count():
    done = events((3, "add", 1), (5, "add", 1), (6, "accept", 1), (8, "learn", 1), (10, "add", 2), (55, "add", 2), (75, "accept", 2))
    assert [(event.label, seconds) for event, seconds in active_seconds(HEADER, done)] == [
        (1, 3.5),
        (1, 2.0),
        (1, 1.0),
        (2, 4.0),
        (2, 0.0),
        (2, PAUSE_S),
    ]
    assert {label: work.active_s for label, work in work_of(HEADER, done).items()} == {1: 6.5, 2: 24.0}


def test_what_a_run_does_takes_nobodys_time():
    run = {"by": "run"}
    done = events((1, "open", 1, run), (3, "add", 1, run), (5, "add", 2, run), (8, "add", 1), (10, "accept", 1))
    assert [(event.label, seconds) for event, seconds in active_seconds(HEADER, done)] == [(1, 0), (2, 0), (1, 0), (1, 2)]
    assert work_of(HEADER, done) == {1: Work(2, 2.0, 0), 2: Work(1, 0.0, 0)}


def test_between_times_with_a_zone_and_without_nobody_knows_what_passed():
    with_zone, without = "2026-01-01T10:00:00+00:00", "2026-01-01T10:00:05"
    assert math.isnan(seconds_between(with_zone, without))
    assert math.isnan(seconds_between(without, with_zone))
    assert seconds_between(without, "2026-01-01T10:00:06") == 1
    done = events((3, "add", 1), (4, "add", 1), (6, "accept", 1))
    assert work_of(replace(HEADER, time=without), done)[1].active_s == 3


def test_a_clock_that_is_set_back_takes_no_time_away():
    assert work_of(HEADER, events((9, "add", 1), (4, "add", 1), (6, "add", 1)))[1].active_s == 9.5 + 2


def test_every_click_counts_and_what_stands_decides_about_the_version():
    done = events(
        (1, "add", 1),
        (2, "add", 1),
        (3, "undo", 1),
        (4, "accept", 1),
        (5, "learn", 1, learnt(1)),
        (6, "add", 2),
        (7, "accept", 2),
        (8, "learn", 2, learnt(2)),
        (9, "go_back", 3, {"number": 1}),
        (10, "add", 3),
        (11, "forget", 3, {"number": 0}),
        (12, "add", 4),
        (13, "undo", 4),
    )
    costs = work_of(HEADER, done)
    assert {label: (work.clicks, work.version) for label, work in costs.items()} == {1: (2, 0), 2: (1, 1), 3: (1, 1), 4: (1, None)}


def test_a_session_that_begins_with_a_taught_model_says_so():
    done = events((0, "open", 1, {"version": Version(7, origin="study")}), (1, "add", 1))
    assert work_of(HEADER, done) == {1: Work(1, 1.5, 7)}


def test_what_was_merged_costs_what_its_parts_did():
    actions = [(1, "add", 1), (2, "add", 2), (3, "add", 2), (4, "relabel", 2, {"into": 9}), (5, "merge", 9, {"into": 1}), (6, "add", 2)]
    assert work_of(HEADER, events(*actions)) == {1: Work(3, 5.5, 0), 2: Work(1, 1.0, 0)}
    taken_back = work_of(HEADER, events(*actions[:5], (6, "undo", 9)))
    assert {label: work.clicks for label, work in taken_back.items()} == {1: 1, 9: 2}


def test_a_real_session_tells_what_it_cost(tmp_path):
    session = Session(IMAGE, DiskSegmenter(), FakePolicy(), journal=Journal.create(tmp_path, IMAGE), store=FakeStore())
    session.add(Click((2, 10, 10)))
    session.accept()
    session.add(Click((2, 20, 30)))
    session.add(Click((2, 24, 30)))
    session.undo()
    session.accept()
    costs = work_in(tmp_path, IMAGE)
    assert {label: (work.clicks, work.version) for label, work in costs.items()} == {1: (1, 0), 2: (2, 1)}
    assert all(0 < work.active_s < PAUSE_S for work in costs.values())
    with pytest.raises(ReadError, match=r"'scan' of shape \(5, 30, 40\); expected one about 'other'"):
        work_in(tmp_path, Image(IMAGE.data + 1, name="other"))
