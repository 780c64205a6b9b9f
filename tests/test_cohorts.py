"""Laws of studies: what one learns stays there, nothing that two sessions teach at once is lost, and an undo takes its lesson out."""

from __future__ import annotations

import importlib
import json
import math
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from napari_apprentice import cli
from napari_apprentice import cohorts as cohorts_module
from napari_apprentice.cohorts import Cohort, cohorts, home
from napari_apprentice.fakes import DiskSegmenter, DiskWeights, FakePolicy, FakeStore
from napari_apprentice.journal import Journal, read_journal
from napari_apprentice.session import Session, resume
from napari_apprentice.types import Click, Image, InputError, ReadError, SessionError, WriteError
from napari_apprentice.versions import Version

VOLUME = Image(np.random.default_rng(0).random((1, 5, 40, 50)), name="volume")
SHIPPED = DiskWeights(4.0)


@pytest.fixture(autouse=True)
def disk(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("APPRENTICE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def study(name: str = "mri") -> Cohort:
    return Cohort(name, "0123", FakeStore())


def begin(name: str = "mri", policy: FakePolicy | None = None, folder: Path | None = None) -> Session:
    cohort = study(name)
    journal = None if folder is None else Journal.create(folder, VOLUME, cohort=name)
    segmenter = DiskSegmenter(4.0)
    return Session(VOLUME, segmenter, policy or FakePolicy(0, 1.0), journal=journal, store=FakeStore(), start=cohort.start(), cohort=cohort)


def teach(session: Session, count: int = 1) -> Session:
    for _ in range(count):
        session.add(Click((len(session.finished) % 5, 20, 25)))
        session.accept()
    return session


def model(session: Session) -> DiskWeights:
    return session._segmenter.snapshot()


def begins_with(name: str = "mri") -> DiskWeights:
    """What the next session would begin with."""
    start = study(name).start()
    return start.snapshot if start else SHIPPED


def test_the_next_session_goes_on_where_the_last_one_stopped():
    teach(begin(), 2)
    again = begin()
    assert model(again) == DiskWeights(6.0, 2)
    assert again.versions.current.sentence == "study mri"
    assert [version.number for version in again.versions.versions] == [0, 1]
    teach(again)
    assert begins_with() == DiskWeights(7.0, 3)


def test_what_one_study_learns_never_reaches_another():
    teach(begin("mri"), 2)
    teach(begin("em"))
    assert (begins_with("mri").lessons, begins_with("em").lessons, begins_with("third").lessons) == (2, 1, 0)
    assert not Cohort("mri", "other weights", FakeStore()).records


def test_two_sessions_on_one_study_lose_nothing():
    first, second = begin(), begin()
    for _ in range(3):
        teach(first)
        teach(second)
    assert begins_with() == DiskWeights(10.0, 6), "somebody's lesson is missing"
    assert model(second) == DiskWeights(10.0, 6)
    teach(first)
    assert model(first) == DiskWeights(11.0, 7)


def test_sessions_in_threads_lose_nothing():
    sessions = [begin() for _ in range(4)]
    barrier = threading.Barrier(4)

    def work(session):
        barrier.wait()
        teach(session, 5)

    threads = [threading.Thread(target=work, args=(session,)) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert begins_with() == DiskWeights(24.0, 20)
    records = study().records
    assert [record.number for record in records] == list(range(1, 21))
    assert len({record.model for record in records}) == 20


def test_whoever_is_slower_learns_again_on_top():
    fast = begin()
    asked = []

    class Overtaken(FakePolicy):
        def on_accept(self, segmenter, lesson):
            asked.append(segmenter.radius)
            if len(asked) == 1:
                teach(fast)
            return super().on_accept(segmenter, lesson)

    slow = teach(begin(policy=Overtaken(0, 1.0)))
    assert asked == [4.0, 5.0]
    assert begins_with() == model(slow) == DiskWeights(6.0, 2)


def test_an_undo_takes_the_lesson_out_of_the_study_and_a_redo_puts_it_in_again():
    session = teach(begin(), 2)
    session.undo()
    assert begins_with() == DiskWeights(5.0, 1)
    session.redo()
    assert begins_with() == DiskWeights(6.0, 2)
    session.go_back(1)
    assert begins_with() == DiskWeights(5.0, 1)
    session.forget()
    assert begins_with() == SHIPPED
    session.undo()
    session.undo()
    assert begins_with() == DiskWeights(6.0, 2)
    while session.can_undo:
        session.undo()
    assert begins_with() == SHIPPED
    while session.can_redo:
        session.redo()
    assert begins_with() == SHIPPED  # the last of them was to forget
    assert [record.cause for record in study().records][:3] == ["learnt", "learnt", "undone"]


def test_what_another_session_has_built_on_stays():
    first = teach(begin())
    second = teach(begin())
    first.undo()
    assert begins_with() == model(second) == DiskWeights(6.0, 2)


def test_undoing_a_lesson_that_was_learnt_on_top_of_another_session_s_keeps_theirs():
    first, second = begin(), begin()
    teach(first)
    teach(second)
    second.undo()
    assert begins_with() == DiskWeights(5.0, 1)
    assert model(second) == SHIPPED
    second.redo()
    assert begins_with() == DiskWeights(6.0, 2)


@pytest.mark.parametrize("background", [False, True])
def test_a_lesson_that_is_redone_when_the_study_has_moved_on_is_learnt_on_top(background):
    first, second = begin(), begin()
    for z in (1, 2):
        if not (background and first.clicks):
            first.add(Click((z, 20, 25)))
        first.accept(learn=not background)
        if background:
            first.add(Click((z + 1, 20, 25)))
            first.learn()
    labels = first.labels.copy()
    while first.can_undo:
        first.undo()
    teach(second)
    while first.can_redo:
        first.redo()
    assert (first.labels == labels).all()
    assert model(first) == DiskWeights(6.0, 2)
    assert begins_with() == DiskWeights(7.0, 3)
    first.undo()
    assert begins_with() == DiskWeights(6.0, 2)
    while first.can_undo:
        first.undo()
    assert begins_with() == DiskWeights(5.0, 1)
    while first.can_redo:
        first.redo()
    assert begins_with() == DiskWeights(7.0, 3)
    assert [record.cause for record in study().records][-2:] == ["learnt", "learnt"]
    teach(second)
    while first.can_undo:
        first.undo()
    while first.can_redo:
        first.redo()
    assert begins_with() == DiskWeights(8.0, 4), "what others have built on stays, and is in once"
    first.accept() if background else teach(first)
    assert begins_with() == model(first) == DiskWeights(9.0, 5)


def test_a_redo_on_a_study_that_has_moved_on_is_whole_or_not_done(tmp_path, monkeypatch):
    first = teach(begin(folder=tmp_path / "work"), 2)
    first.undo()
    teach(begin())

    def fail(*_: object) -> None:
        raise WriteError("the disk is full")

    with monkeypatch.context() as failing:
        failing.setattr(Journal, "append", fail)
        with pytest.raises(WriteError):
            first.redo()
    assert (model(first), begins_with(), first.can_redo) == (DiskWeights(5.0, 1), DiskWeights(6.0, 2), True)
    first.redo()
    assert begins_with() == DiskWeights(7.0, 3)
    first.close()
    records = study().records
    again = go_on(tmp_path / "work")
    assert study().records == records, "the journal knows of it"
    assert model(again) == DiskWeights(6.0, 2)
    assert model(teach(again)) == begins_with() == DiskWeights(8.0, 4)


def test_a_redo_that_the_gate_refuses_on_top_of_others_comes_back_in_the_session():
    first = teach(begin())
    first.undo()
    teach(begin())
    first._model.policy.refusing = True
    first.redo()
    assert model(first) == begins_with() == DiskWeights(5.0, 1)
    assert len(study().records) == 3


def test_a_refused_lesson_is_not_in_the_study():
    session = teach(begin())
    other = teach(begin(), 1)
    session._model.policy.refusing = True
    before = model(session)
    teach(session)
    assert begins_with() == model(other)
    assert model(session) is before


def test_a_session_that_cannot_be_journaled_leaves_the_study_as_it_was(tmp_path):
    session = teach(begin(folder=tmp_path / "work"))
    session.add(Click((3, 20, 25)))
    session._journal.close()
    with pytest.raises(WriteError):
        session.accept()
    assert begins_with() == model(session) == DiskWeights(5.0, 1)


def test_a_checkpoint_that_cannot_be_written_leaves_the_study_as_it_was(tmp_path, monkeypatch):
    session = teach(begin(folder=tmp_path / "work"))
    session.add(Click((3, 20, 25)))
    monkeypatch.setattr(session._model.checkpoints, "save", lambda *_: (_ for _ in ()).throw(WriteError("full")))
    with pytest.raises(WriteError, match="full"):
        session.accept()
    assert begins_with() == model(session) == DiskWeights(5.0, 1)


def test_a_study_that_cannot_be_written_refuses_the_lesson(disk, monkeypatch):
    session = teach(begin())

    def fail(self, *_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FakeStore, "save", fail)
    before = model(session)
    session.add(Click((3, 20, 25)))
    with pytest.raises(WriteError, match=r"'mri' cannot be written .* \(No space left on device\)"):
        session.accept()
    assert model(session) is before
    assert len(study().records) == 1


def test_a_resumed_session_adds_to_its_study(tmp_path):
    teach(begin())
    session = teach(begin(folder=tmp_path / "work"))
    session.close()
    teach(begin())  # somebody else, meanwhile
    again = resume(tmp_path / "work", VOLUME, DiskSegmenter(4.0), FakePolicy(0, 1.0), FakeStore(), study())
    assert again.versions == session.versions
    assert model(again) == DiskWeights(6.0, 2)
    teach(again)
    assert begins_with() == DiskWeights(8.0, 4)


class Killed(BaseException):
    """The process is gone."""


@pytest.fixture
def killed(tmp_path, monkeypatch) -> Path:
    """The folder of a session that was killed when the study had its second lesson, and its journal had not."""
    session = teach(begin(folder=tmp_path / "work"))
    with monkeypatch.context() as patch:
        append = Cohort.append
        patch.setattr(Cohort, "append", lambda *args: (append(*args), (_ for _ in ()).throw(Killed))[0:0])
        with pytest.raises(Killed):
            teach(session)
    session._journal.close()
    assert [record.cause for record in study().records] == ["learnt", "learnt"]
    return tmp_path / "work"


def go_on(folder: Path) -> Session:
    return resume(folder, VOLUME, DiskSegmenter(4.0), FakePolicy(0, 1.0), FakeStore(), study())


def test_who_was_killed_between_study_and_journal_teaches_once(killed):
    again = go_on(killed)
    assert [record.cause for record in study().records] == ["learnt", "learnt", "undone"]
    assert begins_with() == DiskWeights(5.0, 1)
    if again.clicks:
        again.accept()
    else:
        teach(again)
    assert begins_with() == model(again) == DiskWeights(6.0, 2)
    again.close()
    assert model(go_on(killed)) == DiskWeights(6.0, 2)
    assert [record.cause for record in study().records][3:] == ["learnt"], "whatever the journal knows of stays"


def test_what_others_have_built_on_the_lesson_of_a_killed_session_stays(killed):
    teach(begin())
    before = study().records
    go_on(killed).close()
    assert study().records == before
    assert begins_with() == DiskWeights(7.0, 3)


def test_a_damaged_record_keeps_nobody_from_going_on(killed, disk):
    (record,) = disk.glob("cohorts/mri/*/000002.json")
    record.write_text("damaged", "utf-8")
    again = go_on(killed)
    with pytest.raises(ReadError):
        teach(again)


def test_a_session_takes_back_no_lesson_of_another_one(killed, tmp_path):
    other = teach(begin("em", folder=tmp_path / "other"))
    other.close()
    before = study().records
    resume(tmp_path / "other", VOLUME, DiskSegmenter(4.0), FakePolicy(0, 1.0), FakeStore(), study()).close()
    assert study().records == before


def test_only_the_newest_models_and_pinned_ones_stay_on_the_disk(monkeypatch):
    monkeypatch.setattr(cohorts_module, "KEPT_VERSIONS", 3)
    session = teach(begin())
    pinned = session.versions.current.shared
    session.pin(1)
    teach(session, 6)
    models = {path.name for path in study().folder.glob("model-*.safetensors")}
    assert len(models) == 4
    assert pinned in models
    session.pin(1, False)
    assert not study().pinned(pinned)
    session.undo()
    assert study().pinned(pinned)
    assert len(study().records) == 7


def test_the_record_says_what_made_a_version():
    teach(begin())
    (record,) = study().records
    assert record.cause == "learnt"
    assert record.facts["objects"] == [1]
    assert record.facts["case"] == "volume"
    assert record.facts["report"]["loss_after"] == 0.5
    assert "remembered_after" not in record.facts["report"]  # was not measured
    assert record.facts["effort"] == {"clicks": 1, "taught_iou": 1.0, "untaught_iou": 1.0}


@pytest.mark.parametrize("effort", [{"clicks": 2}, {"taught_iou": 0.5}, {"taught_iou": 0.5, "untaught_iou": None}, "little", None])
def test_an_effort_that_another_version_wrote_otherwise_is_not_shown(effort, capsys):
    teach(begin(), 2)
    path = study().folder / "000001.json"
    record = json.loads(path.read_text())
    record["facts"]["effort"] = effort
    path.write_text(json.dumps(record))
    assert cli.main(["cohort", "show", "mri"]) == 0
    assert ["IoU@1" in line for line in capsys.readouterr().out.splitlines()] == [False, False, True]


def test_forgetting_a_study_keeps_its_versions_and_erasing_does_not():
    teach(begin(), 2)
    study().forget()
    with pytest.raises(SessionError, match="nothing to forget"):
        study().forget()
    assert begins_with() == SHIPPED
    assert len(list(study().folder.glob("model-*.safetensors"))) == 2
    running = begin()
    teach(running)
    assert begins_with() == DiskWeights(5.0, 1)
    study().erase()
    assert not (home() / "cohorts" / "mri").exists()
    for action in (study().forget, study().erase):
        with pytest.raises(SessionError, match="no study called 'mri'"):
            action()


def test_all_studies_are_found_by_name():
    assert cohorts() == ()
    teach(begin("mri study 2"))
    teach(begin("em"))
    assert [(cohort.name, cohort.digest) for cohort in cohorts()] == [("em", "0123"), ("mri study 2", "0123")]
    with pytest.raises(SessionError, match="expected a store"):
        cohorts()[0].start()


def test_what_is_no_study_is_passed_over_and_stays(disk):
    teach(begin("em"))
    strays = [home() / "cohorts" / name for name in (".DS_Store", "notes.txt", "em/notes/a.txt", ".hidden/0123/000001.json", "old/empty/x")]
    for stray in strays:
        stray.parent.mkdir(parents=True, exist_ok=True)
        stray.write_text("{}")
    (study("em").folder / "000001 (copy).json").write_text("{")
    (cohort,) = cohorts()
    assert (cohort.name, cohort.digest, len(cohort.records)) == ("em", "0123", 1)
    cohort.erase()
    assert cohorts() == ()
    assert all(stray.exists() for stray in strays)


@pytest.mark.parametrize("text", ["{", "[]", '{"number": 2}', '{"number": 2, "model": 3, "cause": "learnt", "time": "", "facts": {}}'])
def test_a_record_of_another_kind_is_told(text):
    teach(begin())
    (study().folder / "000002.json").write_text(text)
    with pytest.raises(ReadError, match=r"000002.json of a study is damaged \(.*\); expected"):
        study().head  # noqa: B018 (a property that reads)


def test_a_damaged_old_record_keeps_no_lesson_from_counting(monkeypatch):
    monkeypatch.setattr(cohorts_module, "KEPT_VERSIONS", 3)
    session = teach(begin(), 2)
    (study().folder / "000001.json").write_text("")
    teach(session, 4)
    assert begins_with() == model(session) == DiskWeights(10.0, 6)
    assert sorted(path.stem for path in study().folder.glob("0*.json")) == [f"{number:06}" for number in range(1, 7)]
    session.undo()
    teach(begin())
    session.redo()
    assert begins_with() == DiskWeights(11.0, 7), "what was done again is not in the study"


@pytest.mark.parametrize("damaged", [1, 2])
def test_what_others_have_built_on_is_told_beside_a_damaged_record(damaged):
    session = teach(begin(), 3)
    session.undo()
    session.redo()
    teach(begin())
    (study().folder / f"{damaged:06}.json").write_text("")
    before = begins_with()
    session.undo()
    session.redo()
    assert begins_with() == before, "learnt twice"


@pytest.mark.parametrize(
    "place",
    ["checkpoints.Checkpoints.save", "journal.Journal._appear", "cohorts.Cohort._clear_away", "cohorts._made", "teaching.replace"],
)
@pytest.mark.parametrize("after", [False, True])
def test_a_lesson_that_is_interrupted_is_taught_once(place, after, tmp_path, monkeypatch):
    module, *names = place.split(".")
    owner = importlib.import_module(f"napari_apprentice.{module}")
    for name in names[:-1]:
        owner = getattr(owner, name)
    done = getattr(owner, names[-1])

    def stopping(*arguments, **facts):
        if place == "teaching.replace" and "shared" not in facts:
            return done(*arguments, **facts)
        if after:
            done(*arguments, **facts)
        raise KeyboardInterrupt

    session = teach(begin(folder=tmp_path / "session"))
    session.add(Click((1, 20, 25)))
    with monkeypatch.context() as broken:
        broken.setattr(owner, names[-1], stopping)
        with pytest.raises(KeyboardInterrupt):
            session.accept()
    assert (begins_with(), model(session), session.finished) == (DiskWeights(5.0, 1), DiskWeights(5.0, 1), (1,))
    assert read_journal(tmp_path / "session")[1][-1].kind == "add"
    session.accept()
    session.close()
    assert begins_with() == DiskWeights(6.0, 2)
    assert [event.kind for event in read_journal(tmp_path / "session")[1]] == [*("add", "accept", "learn") * 2]
    assert model(go_on(tmp_path / "session")) == DiskWeights(6.0, 2)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", ".hidden", "-x", "a" * 61, "a:b", "ends ", "two\nlines"])
def test_names_that_cannot_be_folders_are_refused(name):
    with pytest.raises(InputError, match="a study called"):
        Cohort(name, "0123")


def test_a_damaged_record_is_told(disk):
    teach(begin())
    (study().folder / "000002.json").write_text("{")
    with pytest.raises(ReadError, match="damaged"):
        begin()


def test_where_there_are_no_hard_links_records_are_exclusive_all_the_same(monkeypatch):
    def link(source, target):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", link)
    first, second = begin(), begin()
    teach(first, 2)
    teach(second, 2)
    assert begins_with() == DiskWeights(8.0, 4)
    version = Version(9, snapshot=DiskWeights(1.0))
    assert study().append(version, basis=study().records[0].model) is None
    assert begins_with() == DiskWeights(8.0, 4)
    assert not math.isnan(begins_with().radius)


@pytest.mark.parametrize("first", ["copy", "original"])
def test_a_session_and_its_copy_take_back_no_lesson_of_one_another(tmp_path, first):
    """A project that takes a session over works on a copy of its folder."""
    session = teach(begin(folder=tmp_path / "original"))
    session.close()
    shutil.copytree(tmp_path / "original", tmp_path / "copy", ignore=shutil.ignore_patterns("in-use.*"))
    for folder in sorted(["copy", "original"], key=lambda name: name != first):
        again = go_on(tmp_path / folder)
        teach(again)
        again.close()
    go_on(tmp_path / first).close()
    assert [record.cause for record in study().records] == ["learnt"] * 3
