"""Work that is done again gives the same labels bit for bit, or the replay says where and why it does not."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from napari_apprentice import labelmap
from napari_apprentice.computers import Computer
from napari_apprentice.fakes import DiskSegmenter, FakePolicy, FakeStore
from napari_apprentice.journal import Event, Header, Journal, package_version, read_journal
from napari_apprentice.replay import beginning, obstacles, read_recording, replay
from napari_apprentice.session import Session, resume
from napari_apprentice.types import Box, Click, ClickError, Image, ImageError, Prediction, SessionError
from napari_apprentice.versions import Version

IMAGE = Image(np.random.default_rng(0).normal(100, 10, (1, 6, 24, 20)), np.diag([3.0, 1, 1, 1]), "mm", name="scan")
HERE = Computer("cpu", "a processor", 2, "2.13.0", "Linux x86_64")
HEADER = Header("scan", "", IMAGE.shape, (), "mm", "", "mi+pi", "unet:0123", "glaucoma", package_version(), computer=HERE)


@pytest.fixture(autouse=True)
def _unflushed(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Heedful(DiskSegmenter):
    """Paints smaller disks on a mask that was given, and others in every class; tells the answers that go back to either."""

    corrections = named = 0

    def _painted(self, image_slice, prompt, radius, score):
        self.named += bool(prompt.kind)
        radius += len(prompt.kind) / 8
        given = prompt.previous is not None and prompt.previous.given
        self.corrections += given
        return replace(super()._painted(image_slice, prompt, radius / 2 if given else radius, score), given=given)


def segmenter(radius=3.0):
    return Heedful(radius, masks=2)


def given_labels():
    labels = np.zeros(IMAGE.shape, np.uint8)
    labels[1:3, 2:6, 3:9] = 4
    return labels


def record(folder, wander, seed, steps=60):
    """A session of random actions that was left and resumed in the middle."""
    labels = given_labels() if seed % 2 else None
    session = Session(IMAGE, segmenter(), FakePolicy(), labels=labels, journal=Journal.create(folder, IMAGE), store=FakeStore())
    wander(session, seed, steps // 2)
    session.close()
    session = resume(folder, IMAGE, segmenter(), FakePolicy(), FakeStore())
    wander(session, seed + 1000, steps // 2)
    session.close()
    return session


def answers(session):
    return {plane: (p.box, p.logits.tobytes(), p.rank, p.given) for plane, p in session.predictions.items()}


@pytest.mark.parametrize("seed", range(12))
def test_whatever_was_done_comes_out_the_same(tmp_path, wander, monkeypatch, seed):
    monkeypatch.setattr(labelmap, "_TILE_VOXELS", 2**24 if seed % 3 else 150)
    session = record(tmp_path, wander, seed)
    tiles = [len(event.patch.tiles) for event in read_recording(tmp_path) if event.patch is not None]
    assert (max(tiles) > 1) == (seed % 3 == 0)
    monkeypatch.setattr(labelmap, "_TILE_VOXELS", 2**24 if seed % 2 else 70)
    again = Session(IMAGE, segmenter(), FakePolicy(), labels=beginning(tmp_path).labels)
    told = []
    assert replay(again, read_recording(tmp_path), lambda: told.append(1)) is None
    assert (again.labels == session.labels).all()
    assert (again.label, again.finished, again.clicks) == (session.label, session.finished, session.clicks)
    assert answers(again) == answers(session)
    assert again._segmenter.snapshot() == session._segmenter.snapshot()
    assert len(told) == len(read_recording(tmp_path))


def test_the_random_sessions_do_all_that_there_is(tmp_path, wander):
    kinds, corrections, named, boxes = Counter(), 0, 0, 0
    for seed in range(12):
        heedful = record(tmp_path / str(seed), wander, seed)._segmenter
        corrections, named = corrections + heedful.corrections, named + heedful.named
        events = read_recording(tmp_path / str(seed))
        kinds.update(event.kind for event in events)
        boxes += sum(event.click is not None and event.click.box is not None for event in events)
    assert corrections > 10
    assert named > 10
    assert boxes > 10
    everything = {"add", "choose", "accept", "learn", "select", "paint", "propagate", "approve", "discard", "delete", "relabel", "merge"}
    assert kinds.keys() >= everything | {"split", "name", "go_back", "forget", "pin"}


def test_a_recording_is_read_for_an_image_if_and_only_if_a_session_takes_all_of_its_clicks(tmp_path):
    blank = Image(IMAGE.data * (np.arange(6) != 4)[:, None, None], name="blank in one slice")
    path = tmp_path / "clicks.json"
    for voxel, axis in product([(0, 0, 0), (5, 23, 19), (6, 0, 0), (0, 24, 0), (0, -1, 0), (4, 3, 3), (1, 1)], (0, 1, 2, 3, -1)):
        path.write_text(json.dumps({"clicks": [{"voxel": [1, 2, 3]}, {"voxel": voxel, "axis": axis}]}))
        try:
            Session(blank, segmenter(), FakePolicy()).add(Click(voxel, axis=axis))
        except (ClickError, ImageError) as error:
            with pytest.raises(ClickError, match=re.escape(f"click 2 of clicks.json: {error}")):
                read_recording(path, like=blank)
        else:
            assert read_recording(path, like=blank)[2].click == Click(voxel, axis=axis)


def test_the_first_action_that_departs_is_told(tmp_path):
    session = Session(IMAGE, segmenter(), FakePolicy(0, 0), journal=Journal.create(tmp_path, IMAGE))
    session.paint((slice(0, 1), slice(0, 2), slice(0, 2)), np.full((1, 2, 2), 9))
    session.add(Click((2, 10, 10)))
    session.accept()
    session.add(Click((4, 10, 10)))
    session.close()
    again = Session(IMAGE, segmenter(4.0), FakePolicy(0, 0))
    departed = replay(again, read_recording(tmp_path))
    assert (departed.kind, departed.sequence) == ("add", 2)
    assert (again.labels != session.labels).any()


def test_a_click_that_changed_nothing_but_does_now_departs(tmp_path):
    session = Session(IMAGE, segmenter(), FakePolicy(0, 0), journal=Journal.create(tmp_path, IMAGE))
    session.add(Click((2, 10, 10), positive=False))
    session.add(Click((2, 10, 10)))
    session.add(Click((2, 10, 10)))  # the same answer: no patch
    session.close()
    events = list(read_recording(tmp_path))
    assert events[2].patch is None
    assert replay(Session(IMAGE, segmenter(), FakePolicy(0, 0)), events) is None
    departed = replay(Session(IMAGE, segmenter(), FakePolicy(1, 0)), [*events[1:2], events[2]])
    assert departed is not None


# --- what stands against it ---


def test_what_an_older_journal_did_to_the_background_is_passed_over():
    again = Session(IMAGE, segmenter(), FakePolicy(0, 0))
    event, click = Event("relabel", 0, into=7), Event("add", 1, click=Click((2, 10, 10)))
    assert replay(again, [event, Event("merge", 1, into=0), click]) is click  # it has no patch to compare with
    assert again.labels.max() == 1


def test_nothing_stands_against_the_same_model_on_the_same_computer():
    events = [Event("add", 1), Event("learn", 1, version=Version(1, parent=0)), Event("add", 2, computer=HERE)]
    assert obstacles(HEADER, events, "unet:0123", HERE) == ()


@pytest.mark.parametrize(
    ("header", "events", "model", "here", "words"),
    [
        ({}, [], "unet:4567", HERE, "made with the weights unet:0123, here are unet:4567"),
        ({"package": "0.0.1"}, [], "unet:0123", HERE, "made with version 0.0.1 of this program"),
        ({"computer": None}, [], "unet:0123", HERE, "does not say what its model ran on"),
        ({}, [], "unet:0123", replace(HERE, threads=8, torch="2.14.0"), r"something else \(threads 2, here 8; torch 2.13.0, here 2.14.0\)"),
        ({}, [Event("add", 1, computer=replace(HERE, processor="b"))], "unet:0123", HERE, r"\(processor b, here a processor\)"),
        ({"computer": replace(HERE, device="H100")}, [], "unet:0123", replace(HERE, device="H100"), "does not round the same way"),
        ({}, [Event("learn", 1, version=Version(1, parent=0, basis="model-a"))], "unet:0123", HERE, "taught the study 'glaucoma'"),
    ],
)
def test_every_obstacle_is_named(header, events, model, here, words):
    (found,) = obstacles(replace(HEADER, **header), events, model, here)
    assert re.search(words, found)


def test_a_study_that_only_this_session_taught_is_no_obstacle():
    begun = Version(1, origin="study glaucoma", shared="model-a")
    events = [Event("open", 1, version=begun), Event("learn", 1, version=Version(2, parent=1, basis="model-a", shared="model-b"))]
    events += [Event("learn", 2, version=Version(3, parent=2, basis="model-b", shared="model-c"))]
    assert obstacles(HEADER, events, "unet:0123", HERE) == ()
    assert (
        "taught the study"
        in obstacles(HEADER, [*events[:2], replace(events[2], version=Version(3, parent=2, basis="x"))], "unet:0123", HERE)[0]
    )


# --- where the model ran is recorded ---


def test_the_journal_says_what_the_model_ran_on_and_again_after_every_resumption(tmp_path):
    with Journal.create(tmp_path, IMAGE, computer=HERE) as journal:
        journal.append(Event("forget", 1), Event("forget", 1))
    other = replace(HERE, device="H100")
    for _ in range(2):
        journal, _ = Journal.reopen(tmp_path, other)
        journal.append(Event("forget", 1), Event("forget", 1))
        journal.append(Event("forget", 1))
        journal.close()
    header, events = read_journal(tmp_path)
    assert header.computer == HERE
    assert [event.computer for event in events] == [None, None, other, None, None, other, None, None]


def test_journals_that_do_not_say_and_those_that_say_more_are_read(tmp_path):
    with Journal.create(tmp_path, IMAGE) as journal:
        journal.append(Event("forget", 1))
    header, events = read_journal(tmp_path)
    assert header.computer is None
    assert events[0].computer is None
    assert "computer" not in json.loads((tmp_path / "journal.jsonl").read_text().splitlines()[1])
    assert Computer.from_facts({"device": "cpu", "colour": "grey"}) == Computer("cpu")


def test_what_differs_between_computers_is_said():
    assert HERE.differences(HERE) == ""
    assert HERE.differences(replace(HERE, device="H100", system="")) == "device cpu, here H100; system Linux x86_64, here unknown"
    assert HERE.repeatable
    assert not replace(HERE, device="H100").repeatable


@pytest.mark.parametrize("practised", [0, 3])
def test_work_done_again_practises_as_much_as_the_journal_says(tmp_path, practised):
    picture = Image(np.arange(400, dtype=np.uint8).reshape(1, 20, 20), name="picture")
    sessions = [Session(picture, DiskSegmenter(2.0), FakePolicy(0, 1.0, 0.25), journal=Journal.create(tmp_path / "once", picture))]
    for number in range(2):
        sessions[0].add(Click((5, 5 + 6 * number)))
        sessions[0].practise(practised)
        sessions[0].accept()
    sessions.append(Session(picture, DiskSegmenter(2.0), FakePolicy(0, 1.0, 0.25)))
    assert replay(sessions[1], read_recording(tmp_path / "once")) is None
    assert sessions[1]._segmenter.radius == sessions[0]._segmenter.radius == 4.0 + practised * 0.25


def test_a_list_of_clicks_practises_as_much_as_the_policy_says(tmp_path):
    (tmp_path / "clicks.json").write_text(json.dumps({"clicks": [{"voxel": [5, 5]}, {"voxel": [12, 12], "object": 2}]}))
    picture = Image(np.arange(400, dtype=np.uint8).reshape(1, 20, 20), name="picture")
    session = Session(picture, DiskSegmenter(2.0), FakePolicy(0, 1.0, 0.25))
    replay(session, read_recording(tmp_path / "clicks.json"))
    assert session._segmenter.radius == 4.0 + 4 * 0.25


def test_an_image_that_lies_elsewhere_stands_against_the_same_labels(tmp_path):
    header = Header.of(IMAGE, model="unet:0123", computer=HERE)
    assert obstacles(header, [], "unet:0123", HERE, IMAGE) == ()
    (found,) = obstacles(header, [], "unet:0123", HERE, replace(IMAGE, affine=np.diag([2.0, 1, 1, 1])))
    assert found.startswith("the image has a spacing of 2 × 1 × 1 mm now")


def test_a_session_goes_on_where_it_was_or_says_that_the_image_is_elsewhere(tmp_path):
    session = Session(IMAGE, segmenter(), FakePolicy(0, 0), journal=Journal.create(tmp_path, IMAGE))
    session.add(Click((2, 10, 10)))
    session.close()
    moved = replace(IMAGE, affine=np.diag([2.0, 1, 1, 1]))
    with pytest.raises(SessionError, match=r"spacing of 2 × 1 × 1 mm now; it had 3 × 1 × 1 mm .* expected it as it was"):
        resume(tmp_path, moved, segmenter(), FakePolicy(0, 0))
    unstated = replace(IMAGE, affine=None, units="pixel")
    again = resume(tmp_path, unstated, segmenter(), FakePolicy(0, 0))
    assert (again.image.spacing, again.image.units) == (IMAGE.spacing, "mm")
    np.testing.assert_array_equal(again.labels, session.labels)
    again.close()


class Blind(DiskSegmenter):
    """Finds nothing where the first click is at a certain place."""

    def predict(self, image_slice, prompt):
        if prompt.clicks[0].voxel == (10, 5):
            return Prediction(np.zeros((0, 0), np.float32), Box(0, 0, 0, 0), image_slice.shape, score=0.0)
        return super().predict(image_slice, prompt)


def done_again(folder, actions, model):
    """A session, and what another model makes of its journal."""
    first = Session(IMAGE, DiskSegmenter(4.0), FakePolicy(0, 0), journal=Journal.create(folder, IMAGE))
    actions(first)
    first.close()
    again = Session(IMAGE, model, FakePolicy(0, 0))
    return first, again, replay(again, read_recording(folder))


def test_what_another_model_cannot_split_moves_no_later_click_to_another_object(tmp_path):
    def actions(session):
        session.add(Click((2, 10, 8)))
        session.accept()
        session.split(1, [(2, 7, 8), (2, 13, 8)])
        session.add(Click((4, 18, 10)))
        session.accept()
        session.add(Click((5, 5, 5)))
        session.name(session.label, "vessel")
        session.accept()

    first, again, departed = done_again(tmp_path, actions, DiskSegmenter(1.0))
    assert departed is not None
    for voxel in ((4, 18, 10), (5, 5, 5)):
        assert again.labels[voxel] == first.labels[voxel] > 0
    assert again.legend.names == first.legend.names == {int(first.labels[5, 5, 5]): "vessel"}


@pytest.mark.parametrize("more", ["propagate", "discard", "accept"])
def test_what_another_model_does_not_find_stops_nothing(tmp_path, more):
    def actions(session):
        session.add(Click((2, 10, 5)))
        session.accept()
        if more == "propagate":
            session.propagate(1, 0)
        else:
            session.select(1)
            getattr(session, more)()
        session.add(Click((4, 12, 15)))
        session.accept()

    first, again, departed = done_again(tmp_path, actions, Blind(4.0))
    assert departed is not None
    assert again.labels[4, 12, 15] == first.labels[4, 12, 15] > 0
