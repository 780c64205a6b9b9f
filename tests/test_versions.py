"""Laws of the versions of a model: every one can be gone back to, forgetting can be undone, and looking changes nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from napari_apprentice import versions as versions_module
from napari_apprentice.fakes import DiskSegmenter, DiskWeights, FakePolicy, FakeStore
from napari_apprentice.journal import Event, Journal, read_journal
from napari_apprentice.replay import read_recording, replay
from napari_apprentice.session import Session, resume
from napari_apprentice.types import Click, Image, LearningReport, Lesson, Plane, SessionError, WriteError
from napari_apprentice.versions import Catalogue, Comparison, Effort, Version, iou, measured

SHAPE = (5, 40, 50)
VOLUME = Image(np.random.default_rng(0).random((1, *SHAPE)), name="volume")


def begin(folder: Path | None = None, policy: FakePolicy | None = None, **options: object) -> Session:
    journal = None if folder is None else Journal.create(folder, VOLUME)
    return Session(VOLUME, DiskSegmenter(4.0), policy or FakePolicy(0, 1.0), journal=journal, store=FakeStore(), **options)


def go_on(folder: Path) -> Session:
    return resume(folder, VOLUME, DiskSegmenter(4.0), FakePolicy(0, 1.0), FakeStore())


def teach(session: Session, count: int = 1) -> Session:
    for _ in range(count):
        session.add(Click((len(session.finished) % SHAPE[0], 20, 25)))
        session.accept()
    return session


def model(session: Session) -> DiskWeights:
    return session._segmenter.snapshot()


def test_every_accepted_object_that_changed_the_model_makes_a_version_with_its_cause():
    session = begin()
    session.select(7)
    teach(session, 2)
    shipped, first, second = session.versions.versions
    assert (shipped.number, shipped.sentence, shipped.snapshot) == (0, "as shipped", DiskWeights(4.0))
    assert (first.number, first.parent, first.objects, first.case) == (1, 0, (7,), "volume")
    assert (second.number, second.parent, second.objects, second.sentence) == (2, 1, (8,), "object 8")
    assert session.versions.current == second
    assert second.snapshot is model(session)
    assert (second.report.loss_before, second.report.loss_after) == (1.0, 0.5)
    assert second.time > "2020"


def test_what_changes_nothing_makes_no_version():
    session = teach(begin(policy=FakePolicy(0, 0)))
    assert [version.number for version in session.versions.versions] == [0]
    assert session.versions.refusals == ()


def test_learning_from_clicks_alone_makes_a_version_when_the_object_is_accepted():
    session = begin(policy=FakePolicy(0.5, 0))
    session.add(Click((2, 20, 25)))
    assert session.versions.number == 0
    session.accept()
    assert session.versions.current.snapshot == DiskWeights(4.5, 1)


def test_a_refusal_is_listed_and_makes_no_version():
    policy = FakePolicy(0, 1.0)
    session = teach(begin(policy=policy))
    policy.refusing = True
    teach(session)
    assert session.versions.number == 1
    (refusal,) = session.versions.refusals
    assert (refusal.label, refusal.version) == (2, 1)
    assert refusal.message.startswith("learning was refused")
    session.undo()
    assert session.versions.refusals == ()


def test_going_back_to_any_version_gives_its_model_and_can_be_undone():
    session = teach(begin(), 3)
    for version in session.versions.versions:
        before, labels = (model(session), session.versions), session.labels.copy()
        session.go_back(version.number)
        assert model(session) is version.snapshot
        assert session.versions.number == version.number
        assert (session.labels == labels).all()
        session.undo()
        assert model(session) is before[0]
        assert session.versions == before[1]
    session.go_back(1)
    teach(session)
    assert (session.versions.number, session.versions.current.parent) == (4, 1)
    assert model(session) == DiskWeights(6.0, 2)


def test_there_is_nothing_to_forget_before_anything_was_learnt_and_after_it_was_forgotten(tmp_path):
    session = begin(tmp_path / "a", FakePolicy(0.5, 1.0))
    for learn in (lambda: session.add(Click((2, 20, 25))), session.accept):  # clicks alone may teach, too
        with pytest.raises(SessionError, match="nothing to forget"):
            session.forget()
        learn()
        assert session.taught
        session.forget()
        assert not session.taught
    session.close()
    assert not go_on(tmp_path / "a").taught


def test_a_journal_in_which_nothing_was_forgotten_is_replayed(tmp_path):
    journal = Journal.create(tmp_path, VOLUME)
    journal.append(Event("forget", 1, number=0), Event("select", 5))
    journal.close()
    session = begin()
    assert replay(session, read_recording(tmp_path)) is None
    assert session.label == 5


def test_forgetting_is_version_zero_and_undoing_it_is_the_identity():
    session = teach(begin(), 2)
    taught, versions = model(session), session.versions
    session.forget()
    assert model(session) == DiskWeights(4.0)
    assert session.versions.number == 0
    assert len(session.versions.versions) == 3
    session.undo()
    assert model(session) is taught
    assert session.versions == versions


def test_undoing_a_lesson_takes_its_version_out_of_the_list():
    session = teach(begin(), 2)
    session.undo()
    assert [version.number for version in session.versions.versions] == [0, 1]
    session.redo()
    assert session.versions.number == 2


@pytest.mark.parametrize("number", [-1, 3])
def test_a_version_that_is_not_there_is_refused(number):
    session = teach(begin(), 2)
    for action in (session.go_back, session.pin, lambda n: session.compare(0, n)):
        with pytest.raises(SessionError, match="expected one of 0 to 2"):
            action(number)
    assert session.versions.number == 2


def test_only_the_newest_pinned_and_first_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(versions_module, "KEPT_VERSIONS", 4)
    session = teach(begin(tmp_path), 3)
    session.pin(2)
    teach(session, 7)
    kept = [version.number for version in session.versions.kept]
    assert kept == [0, 2, 7, 8, 9, 10]
    assert [v.number for v in session.versions.versions if v.snapshot is not None] == kept
    with pytest.raises(SessionError, match="version 3 is no longer kept"):
        session.go_back(3)
    assert model(session) == session.versions.current.snapshot
    session.close()
    again = go_on(tmp_path)
    assert again.versions == session.versions
    again.go_back(2)
    assert model(again) == DiskWeights(6.0, 2)
    with pytest.raises(SessionError, match="version 3 is no longer kept"):
        again.go_back(3)


def test_a_resumed_session_has_the_same_versions_and_can_go_back_to_them(tmp_path):
    session = teach(begin(tmp_path), 4)
    session.pin(1)
    session.go_back(2)
    teach(session)
    session.undo()
    session.close()
    again = go_on(tmp_path)
    assert again.versions == session.versions
    assert model(again) == model(session)
    assert again.versions.current.report == session.versions.current.report
    for number in range(5):
        again.go_back(number)
        assert model(again) == DiskWeights(4.0 + number, number)
        again.undo()


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("pinned", [False, True])
def test_an_undo_brings_back_a_version_that_a_later_lesson_pushed_out(tmp_path, monkeypatch, resumed, pinned):
    monkeypatch.setattr(versions_module, "KEPT_VERSIONS", 4)
    session = teach(begin(tmp_path), 4)
    if pinned:
        session.pin(1)
        teach(session, 2)
    if resumed:
        session.close()
        session = go_on(tmp_path)
    if pinned:
        session.pin(1, False)
    teach(session)
    with pytest.raises(SessionError, match="version 1 is no longer kept"):
        session.go_back(1)
    for _ in range(3 if pinned else 2):
        session.undo()
    session.go_back(1)
    assert model(session) == DiskWeights(5.0, 1)
    session.undo()
    teach(session, 4)
    session.close()
    teach(go_on(tmp_path))
    assert len(list(tmp_path.glob("*.checkpoint"))) <= 4 + 1 + pinned  # what only an earlier session could undo is cleared away


@pytest.mark.parametrize("last", ["go_back", "forget"])
def test_a_resumed_session_works_with_the_version_that_was_gone_back_to(tmp_path, last):
    session = teach(begin(tmp_path), 3)
    session.forget() if last == "forget" else session.go_back(1)
    session.add(Click((4, 10, 10)))
    session.close()
    again = go_on(tmp_path)
    assert (model(again), again.versions.number) == (model(session), session.versions.number)
    again.accept()
    assert again.versions.current.parent == session.versions.number


@pytest.mark.parametrize("undone", [False, True])
@pytest.mark.parametrize("store", [FakeStore(), None])
def test_a_version_that_was_gone_back_to_after_forgetting_is_learnt_again_where_it_cannot_be_read(tmp_path, store, undone):
    session = teach(Session(VOLUME, DiskSegmenter(4.0), FakePolicy(0, 1.0), journal=Journal.create(tmp_path, VOLUME), store=store), 2)
    session.forget()
    session.go_back(2)
    if undone:
        session.undo()
    session.close()
    for path in tmp_path.glob("*.checkpoint"):
        path.write_bytes(b"damaged")
    again = resume(tmp_path, VOLUME, DiskSegmenter(4.0), FakePolicy(0, 1.0), store)
    assert (model(again), again.versions.number) == ((DiskWeights(4.0, 0), 0) if undone else (DiskWeights(6.0, 2), 2))
    if undone:
        again.redo()
    assert (model(again), again.versions.number) == (DiskWeights(6.0, 2), 2)
    assert teach(again).versions.current.parent == 2
    assert model(again) == DiskWeights(7.0, 3)


def test_replaying_the_journal_gives_the_same_models(tmp_path):
    session = teach(begin(tmp_path), 2)
    session.go_back(1)
    session.pin(1)
    teach(session)
    session.forget()
    session.close()
    again = begin()
    replay(again, read_recording(tmp_path))
    assert [(v.number, v.parent, v.pinned, v.snapshot) for v in again.versions.versions] == [
        (v.number, v.parent, v.pinned, v.snapshot) for v in session.versions.versions
    ]
    assert model(again) == model(session)
    untaught = begin(policy=FakePolicy(0, 0))
    replay(untaught, read_recording(tmp_path))
    assert (untaught.labels > 0).any()


def test_a_session_begins_with_a_version_and_keeps_it_when_it_is_resumed(tmp_path):
    start = Version(1, origin="file old", snapshot=DiskWeights(9.0, 5))
    session = begin(tmp_path, start=start)
    assert model(session) == DiskWeights(9.0, 5)
    teach(session)
    assert session.versions.current.parent == 1
    session.close()
    again = go_on(tmp_path)
    assert again.versions == session.versions
    again.go_back(1)
    assert model(again) == DiskWeights(9.0, 5)
    again.forget()
    assert model(again) == DiskWeights(4.0)
    again.close()
    (tmp_path / "model-000000.checkpoint").unlink()
    assert (go_on(tmp_path).labels == session.labels).all()


def test_an_exported_version_can_be_started_from(tmp_path):
    session = teach(begin(), 2)
    path = session.export(1, tmp_path / "one.model")
    assert FakeStore().load(path) == session.versions[1].snapshot
    facts = json.loads(path.read_text())["facts"]
    assert facts["objects"] == "(1,)"
    assert facts["case"] == "volume"
    with pytest.raises(SessionError, match="has no store"):
        Session(VOLUME, DiskSegmenter(), FakePolicy()).export(0, path)


def test_comparing_tells_how_far_apart_and_how_many_objects():
    session = teach(begin(), 3)
    session.go_back(1)
    teach(session)  # version 4, from version 1
    assert session.compare(0, 3) == Comparison(0, 3, 0.75, 3, math.nan, math.nan)
    assert session.compare(2, 4).objects == 2  # each has one that the other has not
    assert session.compare(1, 1).distance == 0


def test_a_failing_journal_leaves_versions_as_they_were(tmp_path):
    session = teach(begin(tmp_path), 2)
    session._journal.close()
    before = model(session), session.versions
    for action in (session.forget, lambda: session.go_back(1), lambda: session.pin(1), session.undo):
        with pytest.raises(WriteError):
            action()
        assert (model(session), session.versions) == before


# --- the untaught model beside the taught one ---


def test_peeking_answers_as_the_untaught_model_and_changes_nothing(tmp_path):
    session = teach(begin(tmp_path), 2)
    session.add(Click((4, 20, 25)))
    session.add(Click((4, 20, 32)))
    session.add(Click((3, 9, 9)))
    untaught = Session(VOLUME, DiskSegmenter(4.0), FakePolicy(0, 0))
    untaught.add(Click((4, 20, 25)))
    untaught.add(Click((4, 20, 32)))
    before = model(session), session.versions, session.labels.copy(), dict(session.predictions), len(read_journal(tmp_path)[1])
    looked = session.peek(Plane(0, 4))
    assert (looked.mask == untaught.predictions[Plane(0, 4)].mask).all()
    assert not (looked.mask == session.predictions[Plane(0, 4)].mask).all()
    assert session.peek().mask.sum() == 49  # a disk of radius 4 about the newest click
    after = model(session), session.versions, session.labels.copy(), dict(session.predictions), len(read_journal(tmp_path)[1])
    assert before[0] is after[0]
    assert (before[2] == after[2]).all()
    assert before[1] == after[1]
    assert before[3:] == after[3:]


def test_a_failing_look_leaves_the_taught_model_in_place(monkeypatch):
    session = teach(begin())
    session.add(Click((4, 20, 25)))
    taught = model(session)
    monkeypatch.setattr(session._segmenter, "predict", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        session.peek()
    assert model(session) is taught


def test_effort_compares_the_first_clicks_of_both_models_with_the_accepted_mask(tmp_path):
    session = teach(begin(tmp_path), 3)  # the disks have a radius of 7 now
    session.add(Click((4, 20, 25)))
    accepted = session.predictions[Plane(0, 4)].mask
    session.add(Click((4, 20, 40), positive=False))
    session.accept()
    rows, cols = np.ogrid[:40, :50]
    four = (rows - 20) ** 2 + (cols - 25) ** 2 <= 16
    effort = session.versions.efforts[-1]
    assert effort == Effort(2, 1.0, iou(four, accepted))
    assert effort.untaught_iou < 0.5
    assert session.versions.efforts[0].taught_iou == session.versions.efforts[0].untaught_iou
    assert read_journal(tmp_path)[1][-1].effort == effort
    assert "untaught it would have been 33 %" in effort.sentence


def test_other_objects_are_protected_from_both_models_when_they_are_compared():
    session = teach(begin(), 1)
    session.add(Click((0, 20, 29)))
    session.accept()
    effort = session.versions.efforts[-1]
    assert effort.taught_iou == 1.0
    rows, cols = np.ogrid[:40, :50]
    four, five = ((rows - 20) ** 2 + (cols - 29) ** 2 <= radius**2 for radius in (4, 5))
    first = session.labels[0] == 1
    assert effort.untaught_iou == iou(four & ~first, five & ~first)


def test_an_untaught_model_saves_nothing_and_costs_no_prediction(monkeypatch):
    session = begin(policy=FakePolicy(0, 0))
    session.add(Click((4, 20, 25)))
    monkeypatch.setattr(session._segmenter, "predict", lambda *_: 1 / 0)
    session.accept()
    assert session.versions.efforts == (Effort(1, 1.0, 1.0),)


def test_objects_that_did_not_begin_with_a_click_on_nothing_are_not_compared():
    labels = np.zeros(SHAPE, np.uint8)
    labels[2, 10:30, 10:30] = 1
    session = begin(labels=labels)
    session.select(1)
    session.add(Click((2, 29, 29), positive=False))
    session.accept()
    assert session.versions.efforts == ()


def test_measuring_leaves_the_segmenter_as_it_was_even_if_it_fails():
    segmenter = DiskSegmenter(4.0)
    untaught = segmenter.snapshot()
    segmenter.teach(1.0)
    taught = segmenter.snapshot()
    bad = Lesson(None, (Click((1, 1)),), np.ones((3, 3), bool), first_iou=0.5)
    with pytest.raises(AttributeError):
        measured(segmenter, untaught, [bad])
    assert segmenter.snapshot() is taught


@pytest.mark.parametrize(("first", "second", "expected"), [([1, 1, 0], [0, 1, 1], 1 / 3), ([0], [0], 1.0), ([1, 1], [1, 1], 1.0)])
def test_iou(first, second, expected):
    assert iou(np.array(first, bool), np.array(second, bool)) == pytest.approx(expected)


def test_facts_come_back():
    version = Version(3, 1, time="now", case="knee", objects=(4, 5), checkpoint="c", shared="s", basis="b", pinned=True)
    assert Version.from_facts(json.loads(json.dumps(version.facts()))) == version
    assert Version.from_facts({**version.facts(), "later": 1}, LearningReport(True)).report == LearningReport(True)


def test_ids_of_several_objects_are_named():
    assert Catalogue.beginning(None).next([], "", LearningReport(), None).sentence == "learnt"
    assert Version(2, 1, objects=(3, 4)).sentence == "objects 3, 4"
