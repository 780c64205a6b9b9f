"""Laws of runs: done once, whatever dies on the way; the same whoever does it and in whatever order; nothing of a person's is touched."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image as Picture

from napari_apprentice import casework, cli, files
from napari_apprentice import journal as journal_module
from napari_apprentice.casework import Model, Plan, fresh_session, publish_model, release, run_case, tried_on_each_other
from napari_apprentice.cohorts import Cohort
from napari_apprentice.dispatch import on_this_machine
from napari_apprentice.expectation import expected_of_answer
from napari_apprentice.fakes import DiskSegmenter, DiskWeights, FakePolicy, FakeStore
from napari_apprentice.journal import Journal, read_journal, replay_labels
from napari_apprentice.legend import read_legend
from napari_apprentice.locks import FolderLock
from napari_apprentice.outcomes import Finished, cohort_table, finish
from napari_apprentice.project_file import Settings
from napari_apprentice.projects import Status, create_project
from napari_apprentice.record import case_record, click_rows, object_rows
from napari_apprentice.session import Session, resume
from napari_apprentice.types import Click, Image, InputError, ReadError, SessionError, WriteError
from napari_apprentice.versions import Version

CLICKS = [
    {"voxel": [12, 10], "object": 2},
    {"voxel": [12, 13], "object": 2, "positive": False},
    {"voxel": [22, 30], "object": 5},
]
PLAN = Plan(partial(Model, DiskSegmenter(4.0), FakeStore(), "disks:0123"), FakePolicy(0.25, 1.0))
NAMES = ["eye_0", "eye_1", "eye_2", "eye_3"]
SETTINGS = Settings("eyes", names={5: "cup"}, clicks="../clicks.json")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("APPRENTICE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path)


def make_project(folder: Path, settings: Settings = SETTINGS):
    rng = np.random.default_rng(0)
    images = [folder / f"{name}.png" for name in NAMES]
    for path in images:
        Picture.fromarray(rng.integers(0, 255, (32, 40), dtype=np.uint8)).save(path)
    (folder / "clicks.json").write_text(json.dumps({"clicks": CLICKS}))
    return create_project(folder / "project", settings, images)


def run(project, plan=PLAN, names=None):
    return {outcome.case: outcome for outcome in on_this_machine(project.folder, names or [c.name for c in project.cases], plan)}


def labels_of(project, name):
    return files.read_labels(project.folder / project.status(name).labels)


def report_of(project, name):
    return json.loads(project.report_path(name).read_text())


def results(project):
    """All that a run leaves for people, without times."""
    found = {}
    for path in sorted([*project.folder.glob("labels/*"), *project.folder.glob("reports/*")]):
        if path.suffix == ".json":
            report = json.loads(path.read_text())
            found[path.name] = {key: value for key, value in report.items() if key not in ("time", "seconds", "image", "clicks_from")}
        else:
            found[path.name] = path.read_bytes()
    return found


def by_hand(project, name, radius=4.0):
    """What a session makes of CLICKS."""
    session = Session(files.read(project[name].image), DiskSegmenter(radius), PLAN.policy)
    for click in CLICKS:
        session.select(click["object"])
        session.add(Click(tuple(click["voxel"]), click.get("positive", True)))
    return session.labels


@contextmanager
def session_of(project, name, radius=4.0, legend=None):
    """A person works on a case, which is done at the end."""
    image = files.read(project[name].image)
    folder = fresh_session(project, name)
    journal = Journal.create(folder, image, cohort=project.settings.study)
    with project.held(name), journal:
        session = Session(image, DiskSegmenter(radius), PLAN.policy, legend=legend, journal=journal)
        yield session
        finish(project, name, session, image, Finished("hand", folder.name))


def do_by_hand(project, name, labels, radius=4.0):
    """A person does a case: every object of ``labels`` is painted and accepted."""
    with session_of(project, name, radius) as session:
        session.paint(tuple(slice(0, size) for size in labels.shape), labels)


class CountedBuild:
    """Builds models, and keeps them for tests to look at."""

    models: ClassVar[list[Model]] = []

    def __call__(self):
        self.models.append(Model(DiskSegmenter(4.0), FakeStore(), "disks:0123"))
        return self.models[-1]


# --- what a run leaves ---


def test_a_run_does_what_the_clicks_say(project):
    outcomes = run(project)
    assert [outcome.state for outcome in outcomes.values()] == 4 * ["done"]
    for name in NAMES:
        labels = labels_of(project, name)
        np.testing.assert_array_equal(labels, by_hand(project, name))
        assert set(np.unique(labels)) == {0, 2, 5}
        assert project.status(name).state == "done"
        assert project.status(name).by == "run"


def names_of(project, name):
    return read_legend(project.folder / "labels" / f"{name}_labels.tsv").names


def test_a_name_of_the_project_that_was_removed_or_moved_does_not_come_back(project):
    with session_of(project, "eye_0", legend=project.settings.legend) as session:
        session.select(5)
        session.add(Click((12, 10)))
        session.relabel(5, 3)
    assert names_of(project, "eye_0") == {3: "cup"}
    with session_of(project, "eye_0", legend=project.settings.legend) as session:
        session.name(5, "")
    assert names_of(project, "eye_0") == {}


def test_what_was_done_elsewhere_gets_the_names_of_the_project(project):
    with session_of(project, "eye_0") as session:
        session.name(2, "rim")
    assert names_of(project, "eye_0") == {2: "rim", 5: "cup"}
    with session_of(project, "eye_0") as session:
        session.name(5, "vessel")
    assert names_of(project, "eye_0") == {5: "vessel"}


def test_the_report_says_what_was_done(project):
    run(project, names=["eye_1"])
    report, labels = report_of(project, "eye_1"), labels_of(project, "eye_1")
    assert report["labels"] == "labels/eye_1_labels.png"
    assert (report["done_by"], report["study"], report["model"], report["study_record"]) == ("run", "eyes", "disks:0123", 0)
    assert report["seconds"] > 0
    assert report["clicks_from"].endswith("clicks.json")
    first, second = report["objects"]
    assert (first["label"], first["clicks"], first["name"]) == (2, 2, "")
    assert (second["label"], second["clicks"], second["name"]) == (5, 1, "cup")
    once = expected_of_answer(1.0, 1, found=False)  # of a network that is sure of itself, and nobody has looked
    assert [one["slices"] for one in report["objects"]] == [[{"axis": 0, "index": 0, "expected_error": e}] for e in (0.0, once)]
    assert report["expected_error"] == project.status("eye_1").expected_error == once > 0.3
    assert [row["voxels"] for row in report["table"]] == [int((labels == label).sum()) for label in (2, 5)]
    assert (project.folder / "labels" / "eye_1_labels.tsv").read_text().splitlines()[1].startswith("5\tcup")


def test_the_table_has_the_objects_of_all_cases_that_are_done(project):
    run(project, names=["eye_0", "eye_2"])
    rows = cohort_table(project)
    assert [(row["case"], row["label"], row["class"], row["clicks"], row["active_s"]) for row in rows] == [
        (name, label, kind, clicks, 0.0) for name in ("eye_0", "eye_2") for label, kind, clicks in ((2, "", 2), (5, "cup", 1))
    ]
    assert {row["done_by"] for row in rows} == {"run"}
    assert [row["expected_error"] for row in rows] == 2 * [0.0, expected_of_answer(1.0, 1, found=False)]
    wrong = (("{", ""), ("[]", "table is no list"), ('{"table": ["a"]}', "table is no list"), ('{"table": [{"a": []}]}', r"a = \[\]"))
    for text, said in wrong:
        project.report_path("eye_0").write_text(text)
        with pytest.raises(ReadError, match=rf"eye_0\.json cannot be read \(.*{said}"):
            cohort_table(project)


def test_the_table_of_a_cohort_has_one_unit_whatever_its_reports_are_in(project):
    run(project, names=["eye_0", "eye_2"])
    for name, sizes in (("eye_0", {"area_mm2": 5e-10}), ("eye_2", {"area_um2": 500.0})):
        report = report_of(project, name)
        report["table"] = [{"case": name, "voxels": 5, **sizes}]
        project.report_path(name).write_text(json.dumps(report))
    assert [row["area_um2"] for row in cohort_table(project)] == pytest.approx([5e-4, 500.0], rel=1e-12)
    assert [row["area_mm2"] for row in cohort_table(project, "mm")] == pytest.approx([5e-10, 5e-4], rel=1e-12)
    assert {name for row in cohort_table(project, "mm") for name in row} == {"case", "voxels", "area_mm2"}


def test_what_a_run_leaves_can_be_gone_on_with(project):
    run(project, names=["eye_0"])
    folder = project.session_folder("eye_0", project.status("eye_0").session)
    np.testing.assert_array_equal(replay_labels(folder), labels_of(project, "eye_0"))
    header, _ = read_journal(folder)
    assert (header.cohort, header.policy, header.model) == ("eyes", SETTINGS.policy, "disks:0123")
    session = resume(folder, files.read(project["eye_0"].image), DiskSegmenter(4.0), PLAN.policy, FakeStore())
    assert session.finished == session.pending == ()  # nobody has accepted anything
    session.close()


def test_a_run_is_no_work_and_who_corrects_it_works_from_the_first_click_on(project, monkeypatch, capsys):
    moments = iter(f"2026-01-01T10:{second // 60:02d}:{second % 60:02d}.000000+00:00" for second in range(0, 3000, 3))
    monkeypatch.setattr(journal_module, "_now", lambda: next(moments))
    run(project, names=NAMES[:2])
    status = project.status("eye_0")
    image, folder = files.read(project["eye_0"].image), project.session_folder("eye_0", status.session)
    session = resume(folder, image, DiskSegmenter(4.0), PLAN.policy, FakeStore())
    session.add(Click((23, 30)))
    session.accept()
    session.close()
    with project.held("eye_0"):
        finish(project, "eye_0", session, image, Finished("hand", status.session))
    rows = {(row["case"], row["label"]): (row["clicks"], row["active_s"]) for row in cohort_table(project)}
    assert rows == {("eye_0", 2): (2, 0.0), ("eye_0", 5): (2, 3.0), ("eye_1", 2): (2, 0.0), ("eye_1", 5): (1, 0.0)}
    sessions = [case_record(project.session_folder(name, project.status(name).session)) for name in NAMES[:2]]
    assert [(len(one.clicks), len(one.by_hand), one.active_s, one.is_work) for one in sessions] == [(4, 1, 3.0, True), (3, 0, 0.0, False)]
    assert [row["done_by"] for row in click_rows(sessions[0])] == ["run", "run", "run", "hand"]
    assert [(row["object"], row["clicks"], row["run_clicks"], row["negative_clicks"]) for row in object_rows(sessions[0])] == [
        (2, 0, 2, 0),
        (5, 1, 1, 0),
    ]
    page, alone = project.folder / "page.html", project.session_folder("eye_1", project.status("eye_1").session)
    assert cli.main(["report", str(project.folder), "--out", str(page), "--csv", str(page.with_suffix(".csv"))]) == 0
    out = capsys.readouterr().out
    assert "Sessions that only a run did, not counted: 1" in out
    assert "Cases: 1, clicks: 1." in out
    assert "eye_0" in page.read_text()
    assert "eye_1" not in page.read_text()
    assert page.with_suffix(".csv").read_text().count(",run\n") == 6
    assert cli.main(["report", str(alone), "--out", str(page)]) == 2
    assert "a run did all in 1 session; expected one in which a person worked" in capsys.readouterr().err


def test_a_run_begins_with_what_the_study_has_learnt_and_teaches_it_nothing(project):
    study = Cohort("eyes", "0123", FakeStore())
    assert publish_model(project, study) == (None, 0)
    model = study.append(Version(1, snapshot=DiskWeights(6.0, 3)), None)
    before = study.records
    assert publish_model(project, study) == publish_model(project, study) == (model, 1)
    assert run(project, Plan(PLAN.build, PLAN.policy, model, 1))["eye_3"].state == "done"
    np.testing.assert_array_equal(labels_of(project, "eye_3"), by_hand(project, "eye_3", 6.0))
    assert study.records == before
    assert report_of(project, "eye_3")["study_record"] == 1
    folder = project.session_folder("eye_3", project.status("eye_3").session)
    again = resume(folder, files.read(project["eye_3"].image), DiskSegmenter(4.0), PLAN.policy, FakeStore())
    assert again.versions.current.shared == model
    assert again._segmenter.radius > 6.0
    again.close()


def test_a_model_for_which_there_is_no_room_is_one_sentence_and_no_file(project, monkeypatch):
    study = Cohort("eyes", "0123", FakeStore())
    study.append(Version(1, snapshot=DiskWeights(6.0, 3)), None)

    def full(source, target):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(WriteError, match="No space left on device"):
        publish_model(project, study)
    assert not any((project.folder / "models").iterdir())


def test_the_model_of_many_cases_lies_on_the_disk_once(project):
    model = Cohort("eyes", "0123", FakeStore()).append(Version(1, snapshot=DiskWeights(6.0, 3)), None)
    publish_model(project, Cohort("eyes", "0123", FakeStore()))
    run(project, Plan(PLAN.build, PLAN.policy, model, 1))
    files_of_it = [*project.folder.glob("cases/*/session-*/model-000000.checkpoint"), *project.folder.glob("models/*")]
    assert len(files_of_it) == 5
    assert len({path.stat().st_ino for path in files_of_it}) == 1


# --- once, and always the same ---


def test_run_twice_is_run_once(project):
    run(project)
    before = {path: path.stat().st_mtime_ns for path in project.folder.rglob("*") if path.is_file() and "in-use" not in path.name}
    assert {outcome.state for outcome in run(project).values()} == {"left"}
    assert {path: path.stat().st_mtime_ns for path in project.folder.rglob("*") if path.is_file() and "in-use" not in path.name} == before
    sessions = sorted(project.folder.glob("cases/*/session-*"))
    assert {outcome.state for outcome in run(project, Plan(PLAN.build, PLAN.policy, again=True)).values()} == {"done"}
    assert len(sorted(project.folder.glob("cases/*/session-*"))) == len(sessions) == 4


def test_neither_order_nor_processes_change_anything(tmp_path):
    folders = [tmp_path / kind for kind in ("forth", "back", "jobs")]
    for folder in folders:
        folder.mkdir()
    forth, back, jobs = map(make_project, folders)
    run(forth)
    run(back, names=NAMES[::-1])
    outcomes = list(on_this_machine(jobs.folder, NAMES, PLAN, jobs=2))
    assert sorted(outcome.case for outcome in outcomes) == NAMES
    assert {outcome.state for outcome in outcomes} == {"done"}
    assert results(forth) == results(back) == results(jobs)
    assert len(results(forth)) == 12


def test_two_runs_at_once_do_every_case_once(project, monkeypatch):
    done, built = [], threading.Barrier(2, timeout=30)
    before = casework._run

    def slowly(*arguments):
        threading.Event().wait(0.05)
        return before(*arguments)

    def work():
        built.wait()
        done.extend(outcome for outcome in on_this_machine(project.folder, NAMES, PLAN) if outcome.state == "done")

    monkeypatch.setattr(casework, "_run", slowly)
    runs = [threading.Thread(target=work) for _ in range(2)]
    for one in runs:
        one.start()
    for one in runs:
        one.join(timeout=60)
    assert Counter(outcome.case for outcome in done) == Counter(NAMES)


class Killed(BaseException):
    """As if the process had ended here."""


def test_whatever_write_is_the_last_one_the_next_run_ends_as_if_nothing_had_been(tmp_path, monkeypatch):
    (tmp_path / "calm").mkdir()
    calm = make_project(tmp_path / "calm")
    run(calm, names=NAMES[:1])
    moments, whole = 0, os.replace
    while True:
        folder = tmp_path / str(moments)
        folder.mkdir()
        project, left = make_project(folder), [moments]

        def replace(*arguments, left=left, **options):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            whole(*arguments, **options)

        with monkeypatch.context() as deadly:
            deadly.setattr(os, "replace", replace)
            try:
                run(project, names=NAMES[:1])
                break
            except Killed:
                pass
        status = project.status(NAMES[0])
        assert status.state in ("waiting", "begun")
        release(project)
        assert project.status(NAMES[0]).state == "waiting"
        assert run(project, names=NAMES[:1])[NAMES[0]].state == "done"
        assert results(project) == results(calm)
        assert len(list(project.case_folder(NAMES[0]).glob("session-*"))) <= 2
        moments += 1
    assert moments >= 5


KILLED = """
import sys, time
sys.path.insert(0, sys.argv[2])
import test_casework as tests
from napari_apprentice import casework
before = casework._run
def slowly(*arguments):
    time.sleep(0.1)
    return before(*arguments)
casework._run = slowly
print("ready", flush=True)
for outcome in tests.on_this_machine(tests.Path(sys.argv[1]), tests.NAMES, tests.PLAN):
    print(outcome.case, outcome.state, flush=True)
    time.sleep(0.1)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_run_is_gone_on_with(project, tmp_path):
    command = [sys.executable, "-c", KILLED, str(project.folder), str(Path(__file__).parent)]
    said = []
    for kill in range(3):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "ready\n"
            said += [process.stdout.readline().split() for _ in range(kill + 1)]
            threading.Event().wait(0.05 * kill)
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=60)
    done = [case for case, state in said if state == "done"]
    assert len(done) == len(set(done)) >= 1
    assert all(project.status(case).state == "done" for case in done)
    release(project)
    assert {project.status(name).state for name in NAMES} <= {"done", "waiting"}
    run(project)
    assert {project.status(name).state for name in NAMES} == {"done"}
    for name in NAMES:
        np.testing.assert_array_equal(labels_of(project, name), by_hand(project, name))


# --- what goes wrong ---


def test_a_case_that_fails_says_why_and_the_others_go_on(project):
    path = project["eye_1"].image
    whole = path.read_bytes()
    path.write_bytes(whole[:60])
    outcomes = run(project)
    assert [outcomes[name].state for name in NAMES] == ["done", "failed", "done", "done"]
    assert "eye_1.png' is damaged" in project.status("eye_1").reason
    assert outcomes["eye_1"].sentence == project.status("eye_1").reason
    path.write_bytes(whole)
    assert run(project)["eye_1"].state == "done"
    assert project.status("eye_1").reason == ""


def test_what_nobody_foresaw_is_a_failed_case_too(project):
    outcomes = run(project, Plan(PLAN.build, FakePolicy(failing="click", error=MemoryError("no room"))))
    assert {outcome.sentence for outcome in outcomes.values()} == {"MemoryError: no room"}
    assert {project.status(name).state for name in NAMES} == {"failed"}
    assert {outcome.state for outcome in run(project).values()} == {"done"}


def test_a_session_of_a_case_that_cannot_begin_locks_nothing_and_leaves_the_model_as_it_was(project, monkeypatch):
    (project.folder / "models").mkdir()
    FakeStore().save(DiskWeights(6.0), project.folder / "models" / "taught")
    plan, models = replace(PLAN, model="taught", build=CountedBuild()), CountedBuild.models

    def stopping(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(Journal, "append", stopping)
        with pytest.raises(KeyboardInterrupt) as held:
            run_case(project.folder, "eye_0", plan)
    (folder,) = project.case_folder("eye_0").glob("session-*")
    FolderLock(folder).release()
    assert not list(folder.glob("journal*"))
    assert models[-1].segmenter.snapshot() == DiskWeights(4.0)
    assert held.tb is not None


def test_a_damaged_old_record_of_the_study_keeps_no_run_from_its_model(project):
    study = Cohort("eyes", "0123", FakeStore())
    for radius in (5.0, 6.0):
        study.append(Version(1, snapshot=DiskWeights(radius)), study.head)
    (study.folder / "000001.json").write_text("")
    assert publish_model(project, study) == (study.head, 2)


def test_a_click_outside_of_the_image_is_told(project):
    Picture.fromarray(np.zeros((8, 8), np.uint8)).save(project["eye_2"].image)
    assert "expected one inside the image" in run(project)["eye_2"].sentence


def test_a_case_whose_image_disappears_is_skipped(project):
    away = project["eye_1"].image.rename(project["eye_1"].image.with_suffix(".away"))
    outcomes = run(project)
    assert [outcomes[name].state for name in NAMES] == ["done", "missing", "done", "done"]
    assert "eye_1.png is not there" in outcomes["eye_1"].sentence
    away.rename(project["eye_1"].image)
    assert [outcome.state for outcome in run(project).values()] == ["left", "done", "left", "left"]


def test_what_a_person_has_begun_or_done_is_left_alone(project):
    project.set_status("eye_0", Status("begun", by="hand", session="session-mine"))
    do_by_hand(project, "eye_1", np.full((32, 40), 3))
    outcomes = run(project, Plan(PLAN.build, PLAN.policy, again=True))
    assert [outcomes[name].state for name in NAMES] == ["left", "left", "done", "done"]
    assert outcomes["eye_0"].sentence == "it was begun by hand"
    assert (labels_of(project, "eye_1") == 3).all()


def test_doing_a_case_again_in_vain_leaves_what_was_done(project, monkeypatch):
    run(project)
    left, stored = results(project), {name: project.stored(name) for name in NAMES}
    again = Plan(PLAN.build, PLAN.policy, again=True)
    project["eye_1"].image.unlink()
    (project.folder.parent / "clicks.json").write_text("{not clicks")
    outcomes = run(project, again)
    assert {outcome.state for outcome in outcomes.values()} == {"failed"}
    assert all(outcome.sentence.endswith("; what was done before is kept") for outcome in outcomes.values())
    assert {name: project.stored(name) for name in NAMES} == stored

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(casework, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_case(project.folder, "eye_0", again)
    assert results(project) == left
    for name in NAMES:
        assert [path.name for path in project.case_folder(name).glob("session-*")] == [stored[name].session]
        assert (replay_labels(project.session_folder(name, stored[name].session)) == labels_of(project, name)).all()


def test_a_case_that_somebody_holds_is_left(project):
    with project.held("eye_0"):
        outcome = run_case(project.folder, "eye_0", PLAN)
    assert outcome.state == "left"
    assert "in use" in outcome.sentence


def test_without_clicks_or_examples_a_case_says_so(tmp_path):
    project = make_project(tmp_path, Settings("eyes"))
    assert "nothing says where to click in case 'eye_0'" in run(project)["eye_0"].sentence


def test_a_model_that_is_gone_fails_no_case(project):
    with pytest.raises(ReadError, match=r"gone\.safetensors"):
        run(project, Plan(PLAN.build, PLAN.policy, "gone.safetensors", 1))
    assert {project.status(name).state for name in NAMES} == {"waiting"}


def test_an_object_that_is_not_found_is_the_worst_there_is(project):
    clicks = [{"voxel": [12, 10], "object": 1}, {"voxel": [12, 10], "object": 4}]
    (project.folder.parent / "clicks.json").write_text(json.dumps({"clicks": clicks}))
    run(project, Plan(PLAN.build, FakePolicy(0, 0)), ["eye_0"])
    assert project.status("eye_0").reason == "object 4 was not found"
    assert project.status("eye_0").expected_error == 1.0
    assert [(one["label"], one["expected_error"]) for one in report_of(project, "eye_0")["objects"]] == [
        (1, expected_of_answer(1.0, 1, found=False)),
        (4, 1.0),
    ]


def test_cases_that_nobody_works_on_wait_again(project):
    for name in NAMES[:2]:
        project.set_status(name, Status("begun", by="run", session="session-x"))
    project.set_status("eye_2", Status("begun", by="hand"))
    with project.held("eye_1"):
        release(project)
    assert [project.status(name).state for name in NAMES] == ["waiting", "begun", "begun", "waiting"]


def test_jobs_are_at_least_one(project):
    with pytest.raises(InputError, match="0 jobs"):
        list(on_this_machine(project.folder, NAMES, PLAN, jobs=0))


# --- where to click ---


def test_a_folder_of_clicks_has_one_file_for_each_case(project, tmp_path):
    folder = tmp_path / "clicks"
    folder.mkdir()
    (folder / "eye_1.json").write_text(json.dumps({"clicks": [{"voxel": [20, 20], "object": 9}]}))
    run(project, Plan(PLAN.build, PLAN.policy, clicks=folder))
    assert set(np.unique(labels_of(project, "eye_1"))) == {0, 9}
    assert set(np.unique(labels_of(project, "eye_0"))) == {0, 2, 5}


def test_the_journal_of_a_case_says_where_to_click_in_others(project):
    do = Session(
        files.read(project["eye_0"].image),
        DiskSegmenter(4.0),
        PLAN.policy,
        journal=Journal.create(project.folder / "recorded", files.read(project["eye_0"].image)),
    )
    do.add(Click((9, 9)))
    do.accept()
    do.paint((slice(0, 2), slice(0, 2)), np.full((2, 2), 7))
    do.close()
    run(project, Plan(PLAN.build, PLAN.policy, clicks=project.folder / "recorded"), ["eye_2"])
    assert set(np.unique(labels_of(project, "eye_2"))) == {0, 1}


def test_what_a_session_dropped_stays_dropped_and_what_it_renumbered_has_its_last_id(project):
    image = files.read(project["eye_0"].image)
    session = Session(image, DiskSegmenter(2.0), FakePolicy(0, 0), journal=Journal.create(project.folder / "recorded", image))

    def click(label, *voxel):
        session.select(label)
        session.add(Click(voxel))

    click(1, 3, 3)
    session.discard()
    click(1, 3, 12)
    click(2, 3, 21)
    session.name(2, "dropped")
    click(3, 3, 30)
    session.name(3, "rim")
    click(4, 12, 3)
    click(6, 12, 12)
    click(7, 12, 21)
    session.undo()
    session.delete(2)
    session.relabel(3, 2)
    session.merge(6, 1)
    session.delete(4)
    session.undo()
    session.close()
    project.set_status("eye_0", Status("failed"))
    run(project, Plan(PLAN.build, FakePolicy(0, 0), clicks=project.folder / "recorded"), ["eye_0"])
    found = {label: set(zip(*np.nonzero(labels_of(project, "eye_0") == label), strict=True)) for label in (1, 2, 4)}
    assert set(np.unique(labels_of(project, "eye_0"))) == {0, 1, 2, 4}
    assert (3, 30) in found[2]
    assert (12, 3) in found[4]
    assert (12, 12) in found[1]
    assert (3, 3) not in found[1]
    assert names_of(project, "eye_0") == {2: "rim", 5: "cup"}


def test_a_class_that_was_kept_from_object_to_object_goes_along_with_the_clicks(project):
    image = files.read(project["eye_0"].image)
    session = Session(image, DiskSegmenter(2.0), FakePolicy(0, 0), journal=Journal.create(project.folder / "recorded", image))
    session.name(1, "rim")
    for voxel in ((3, 3), (3, 21)):
        session.add(Click(voxel))
        session.accept(keep_class=True)
    session.close()
    project.set_status("eye_0", Status("failed"))
    run(project, Plan(PLAN.build, FakePolicy(0, 0), clicks=project.folder / "recorded"), ["eye_0"])
    assert {label: names_of(project, "eye_0")[label] for label in (1, 2)} == {1: "rim", 2: "rim"}


@pytest.fixture
def bright(tmp_path):
    """Cases with a bright disk each, in different places, and their truths."""
    rng, truths, images = np.random.default_rng(2), {}, []
    rows, cols = np.mgrid[:60, :80]
    for name, (row, col) in zip(NAMES, ((20, 30), (30, 45), (35, 28), (25, 50)), strict=True):
        truths[name] = ((rows - row) ** 2 + (cols - col) ** 2 <= 64).astype(np.uint8)
        picture = rng.normal(80, 6, truths[name].shape) + 90 * truths[name]
        images.append(tmp_path / f"{name}.png")
        Picture.fromarray(picture.clip(0, 255).astype(np.uint8)).save(images[-1])
    return create_project(tmp_path / "project", Settings("eyes"), images), truths


def test_accepted_cases_say_how_right_suggested_clicks_are_in_this_study(bright):
    project, truths = bright
    plan = Plan(partial(Model, DiskSegmenter(8.0), FakeStore(), "d:0"), FakePolicy(0, 0), examples=("eye_0", "eye_1"))
    do_by_hand(project, "eye_0", truths["eye_0"])
    assert tried_on_each_other(project, replace(plan, examples=("eye_0",))) == 0.0
    do_by_hand(project, "eye_1", truths["eye_1"])
    better = tried_on_each_other(project, plan)
    assert better > 0.05
    run(project, plan, ["eye_2"])
    run(project, replace(plan, better=better), ["eye_3"])
    errors = [project.status(name).expected_error for name in ("eye_2", "eye_3")]
    assert errors[0] - errors[1] == pytest.approx(better)
    do_by_hand(project, "eye_1", np.roll(truths["eye_1"], 25, axis=1))  # something else lies where the first one suggests it
    assert tried_on_each_other(project, plan) < 0
    (project.folder / project.status("eye_1").labels).unlink()
    assert tried_on_each_other(project, plan) == 0.0


def test_an_example_that_was_corrected_is_read_again(bright):
    project, truths = bright
    plan = Plan(partial(Model, DiskSegmenter(8.0), FakeStore(), "d:0"), FakePolicy(0, 0), examples=("eye_0",), again=True)
    for label in (1, 4):
        do_by_hand(project, "eye_0", label * truths["eye_0"])
        run(project, plan, ["eye_1"])
        assert set(np.unique(labels_of(project, "eye_1"))) == {0, label}


def test_accepted_cases_say_where_to_click(bright):
    project, truths = bright
    do_by_hand(project, "eye_0", truths["eye_0"])
    outcomes = run(project, Plan(partial(Model, DiskSegmenter(8.0), FakeStore(), "d:0"), FakePolicy(0, 0), examples=("eye_0",)))
    assert [outcome.state for outcome in outcomes.values()] == ["left", "done", "done", "done"]
    for name in NAMES[1:]:
        found, truth = labels_of(project, name) == 1, truths[name] == 1
        assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.8
        report = report_of(project, name)
        assert report["clicks_from"] == "case eye_0"
        assert report["objects"][0]["likeness"] > 0.8


@pytest.mark.parametrize("lost", ["labels", "image"])
def test_an_example_that_is_gone_is_passed_over_and_told(bright, lost):
    project, truths = bright
    plan = Plan(partial(Model, DiskSegmenter(8.0), FakeStore(), "d:0"), FakePolicy(0, 0), examples=("eye_0", "eye_1"))
    for name in plan.examples:
        do_by_hand(project, name, truths[name])
    gone = {name: (project.folder / project.status(name).labels if lost == "labels" else project[name].image) for name in plan.examples}
    gone["eye_1"].unlink()
    assert run(project, plan, ["eye_2"])["eye_2"].state == "done"
    report = report_of(project, "eye_2")
    assert report["clicks_from"] == "case eye_0"
    (told,) = [warning for warning in report["warnings"] if "passed over" in warning]
    assert told.startswith("case 'eye_1' was passed over: ")
    assert gone["eye_1"].name in told
    gone["eye_0"].unlink()
    casework._read_example.cache_clear()
    outcome = run(project, plan, ["eye_3"])["eye_3"]
    assert outcome.state == "failed"
    assert outcome.sentence.startswith("nothing says where to click in case 'eye_3': case 'eye_1' was passed over")


def test_older_examples_take_the_place_of_newer_ones_that_are_gone(bright, monkeypatch):
    project, truths = bright
    monkeypatch.setattr(casework, "NEWEST_EXAMPLES", 1)
    plan = Plan(partial(Model, DiskSegmenter(8.0), FakeStore(), "d:0"), FakePolicy(0, 0), examples=tuple(NAMES[:3]))
    for name in plan.examples:
        do_by_hand(project, name, truths[name])
    (project.folder / project.status("eye_2").labels).unlink()
    run(project, plan, ["eye_3"])
    assert report_of(project, "eye_3")["clicks_from"] == "case eye_1"


def test_an_answer_that_takes_the_place_of_another_object_is_told_so(tmp_path):
    project = make_project(tmp_path, Settings("eyes"))
    labels = np.zeros((32, 40), np.uint8)
    labels[8:13, 8:13], labels[8:13, 14:19] = 1, 2
    for name in NAMES[:2]:
        Picture.fromarray(np.random.default_rng(0).integers(0, 255, (32, 40), dtype=np.uint8)).save(project[name].image)
    do_by_hand(project, "eye_0", labels)
    run(project, Plan(partial(Model, DiskSegmenter(7.0), FakeStore(), "d:0"), FakePolicy(0, 0), examples=("eye_0",)), ["eye_1"])
    assert labels_of(project, "eye_1")[10, 16] != 1
    assert report_of(project, "eye_1")["objects"][0]["clicks"] == 2


# --- volumes ---


@pytest.fixture
def volume(tmp_path):
    """A volume with a bright column through all of its slices."""
    data = np.random.default_rng(1).normal(100, 5, (9, 40, 40))
    data[:, 12:25, 12:25] += 80
    image = Image(data[None].astype(np.float32), np.diag([2.0, 1.0, 1.0, 1.0]), "mm")
    (tmp_path / "clicks.json").write_text('{"clicks": [{"voxel": [4, 18, 18]}]}')
    files.save_image(tmp_path / "scan.nii.gz", image)
    return tmp_path / "scan.nii.gz"


@pytest.mark.parametrize("propagate", [True, False])
def test_objects_of_volumes_are_carried_through_the_slices(volume, tmp_path, propagate):
    project = create_project(tmp_path / "p", Settings("s", propagate=propagate, clicks="../clicks.json"), [volume])
    run(project, Plan(partial(Model, DiskSegmenter(6.0), FakeStore(), "d:0"), FakePolicy(0, 0)))
    labels, report = labels_of(project, "scan"), report_of(project, "scan")
    filled = np.flatnonzero(labels.any(axis=(1, 2))).tolist()
    told = [one["index"] for one in report["objects"][0]["slices"]]
    assert len(filled) > 3 if propagate else filled == [4]
    assert set(filled) <= set(told)
    assert told == sorted(told)
    np.testing.assert_allclose(files.read(project.folder / "labels" / "scan_labels.nii.gz").affine, files.read(volume).affine)
    expected = [one["expected_error"] for one in report["objects"][0]["slices"]]
    assert min(expected) == expected_of_answer(1.0, 1, found=False), "what is carried from there is no better"
    assert math.isclose(report["expected_error"], sum(expected) / len(expected))


def test_what_was_clicked_across_another_axis_stays_in_its_slice(volume, tmp_path):
    (tmp_path / "clicks.json").write_text('{"clicks": [{"voxel": [4, 18, 18], "axis": 1}]}')
    project = create_project(tmp_path / "p", Settings("s", clicks="../clicks.json"), [volume])
    assert run(project)["scan"].state == "done"
    assert "object 1 was not carried" in project.status("scan").reason


def test_a_finished_case_needs_its_session(project):
    image = files.read(project["eye_0"].image)
    with pytest.raises((ReadError, SessionError)):
        finish(project, "eye_0", Session(image, DiskSegmenter(), FakePolicy()), image, Finished("hand", "session-none"))
    assert project.status("eye_0").state == "waiting"


# --- files of others ---


AGAIN = replace(PLAN, again=True)


def test_labels_that_somebody_laid_into_the_folder_are_not_replaced(project):
    truth = project.folder / "labels" / "eye_0_labels.png"
    names = project.folder / "labels" / "eye_1_labels.tsv"
    truth.parent.mkdir()
    Picture.fromarray(np.full((32, 40), 7, np.uint8)).save(truth)
    names.write_text("index\tname\n3\tmine\n")
    kept = truth.read_bytes(), names.read_bytes()
    outcomes = run(project)
    assert [outcomes[name].state for name in NAMES] == ["failed", "failed", "done", "done"]
    for name, path in (("eye_0", truth), ("eye_1", names)):
        assert str(path) in outcomes[name].sentence
        assert "was not written by this project" in outcomes[name].sentence
        assert "expected no such file: move it" in project.status(name).reason
    with pytest.raises(WriteError, match=r"eye_0_labels\.png was not written by this project"):
        do_by_hand(project, "eye_0", np.ones((32, 40), np.uint8))
    assert (truth.read_bytes(), names.read_bytes()) == kept
    truth.rename(project.folder / "truth.png")
    assert run(project)["eye_0"].state == "done"


def test_labels_that_another_program_corrected_are_not_replaced(project):
    run(project)
    labels = [project.folder / project.status(name).labels for name in NAMES]
    corrected = labels_of(project, "eye_0")
    corrected[0, 0] = 9
    Picture.fromarray(corrected).save(labels[0])
    Picture.fromarray(labels_of(project, "eye_1")).save(labels[1], compress_level=1)  # only saved once more
    labels[2].with_suffix(".tsv").write_text("index\tname\n5\tmine\n")
    labels[3].write_bytes(b"")
    stored, outcomes = project.stored("eye_0"), run(project, AGAIN)
    assert [outcomes[name].state for name in NAMES] == ["failed", "done", "failed", "failed"]
    assert "or was changed since" in outcomes["eye_0"].sentence
    assert outcomes["eye_0"].sentence.endswith("what was done before is kept")
    assert project.stored("eye_0") == stored
    assert labels_of(project, "eye_0")[0, 0] == 9
    assert read_legend(labels[2].with_suffix(".tsv")).names == {5: "mine"}
    labels[3].unlink()
    assert run(project, AGAIN)["eye_3"].state == "done"
    assert run(project, AGAIN)["eye_3"].state == "done"


def test_a_case_done_before_digests_were_kept_is_done_again(project, monkeypatch):
    run(project, names=NAMES[:1])
    project.set_status("eye_0", replace(project.stored("eye_0"), written=""))

    def killed(*arguments, **options):
        raise Killed

    with monkeypatch.context() as deadly:
        deadly.setattr(files, "write", killed)
        with pytest.raises(Killed):
            run(project, AGAIN, NAMES[:1])
    assert run(project, AGAIN, NAMES[:1])["eye_0"].state == "done"
