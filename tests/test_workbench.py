"""Projects with the shipped network, and what the command line says of them."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image as Picture

from napari_apprentice import Click, cli, create_project, files, open_case, open_project, open_session, run_project, workbench
from napari_apprentice.cohorts import cohorts
from napari_apprentice.journal import read_journal, replay_labels
from napari_apprentice.project_file import Settings
from napari_apprentice.types import ApprenticeError, InUseError, ReadError, SessionError, WriteError
from napari_apprentice.weights import load_weights, save_weights
from napari_apprentice.workbench import take_case, teach_case

NAMES = ["eye_0", "eye_1", "eye_2"]
CENTRES = {"eye_0": (28, 30), "eye_1": (36, 42), "eye_2": (30, 48)}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("APPRENTICE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    rows, cols = np.mgrid[:64, :80]
    for name, (row, col) in CENTRES.items():
        disk = (rows - row) ** 2 + (cols - col) ** 2 <= 100
        Picture.fromarray((rng.normal(90, 8, disk.shape) + 80 * disk).clip(0, 255).astype(np.uint8)).save(tmp_path / f"{name}.png")
    row, col = CENTRES["eye_0"]
    (tmp_path / "first.json").write_text(json.dumps({"clicks": [{"voxel": [row, col]}, {"voxel": [row + 25, col], "positive": False}]}))
    return [tmp_path / f"{name}.png" for name in NAMES]


@pytest.fixture
def project(tmp_path, images):
    return create_project(tmp_path / "project", Settings("eyes", names={1: "disc"}), images)


def labels_of(project, name):
    return files.read_labels(project.folder / project.status(name).labels)


def lessons():
    return sum(record.cause == "learnt" for cohort in cohorts() for record in cohort.records)


def command(*arguments):
    return cli.main(["cohort", *map(str, arguments)])


def refused(capsys, *arguments):
    assert command(*arguments) == 2
    out, err = capsys.readouterr()
    (line,) = [line for line in err.splitlines() if line.startswith("apprentice:")]
    assert (out, "expected" in line) == ("", True)
    return line


# --- by hand ---


def test_a_case_is_gone_on_with_where_it_stopped(project):
    with open_case(project, "eye_0", device="cpu") as case:
        case.session.add(Click(CENTRES["eye_0"]))
        labels = case.session.labels.copy()
        with pytest.raises(InUseError), open_case(project, "eye_0", device="cpu"):
            pass
    assert (project.status("eye_0").state, project.status("eye_0").by) == ("begun", "hand")
    with open_case(project, "eye_0", device="cpu") as case:
        np.testing.assert_array_equal(case.session.labels, labels)
        assert case.session.clicks == (Click(CENTRES["eye_0"]),)
        case.session.accept()
        case.finish()
    assert (project.status("eye_0").state, project.status("eye_0").by) == ("done", "hand")
    np.testing.assert_array_equal(labels_of(project, "eye_0"), labels)
    assert lessons() == 1


def test_a_look_changes_nothing(project):
    with open_case(project, "eye_1", device="cpu"):
        pass
    assert project.status("eye_1").state == "waiting"
    teach_case(project, "eye_0", "first.json", device="cpu")
    known = project.status("eye_0")
    with open_case(project, "eye_0", device="cpu") as case:
        assert case.session.legend.names == {1: "disc"}
    again = project.status("eye_0")
    assert (again.state, again.by, again.session, again.labels) == (known.state, known.by, known.session, known.labels)


def test_a_case_in_which_something_was_done_after_it_was_finished_is_begun(project):
    with open_case(project, "eye_0", device="cpu") as case:
        case.session.add(Click(CENTRES["eye_0"]))
        case.session.accept()
        case.finish()
        case.finish()
    assert (project.status("eye_0").state, project.status("eye_0").by) == ("done", "hand")
    with open_case(project, "eye_0", device="cpu") as case:
        case.finish()
        case.session.add(Click((5, 5)))
        assert project.status("eye_0").state == "done"
    assert (project.status("eye_0").state, project.status("eye_0").by) == ("begun", "hand")
    with open_case(project, "eye_0", device="cpu") as case:
        case.finish()
    assert labels_of(project, "eye_0")[5, 5] == 2


def test_what_a_run_did_can_be_corrected_and_teaches_then(project):
    teach_case(project, "eye_0", "first.json", device="cpu")
    assert lessons() == 1
    outcomes = {outcome.case: outcome.state for outcome in run_project(project, device="cpu", threads=1)}
    assert outcomes == {"eye_0": "left", "eye_1": "done", "eye_2": "done"}
    assert lessons() == 1
    for name in NAMES[1:]:
        assert labels_of(project, name)[CENTRES[name]] == 1
    with open_case(project, "eye_1", device="cpu") as case:
        np.testing.assert_array_equal(case.session.labels, labels_of(project, "eye_1"))
        case.session.select(1)
        case.session.add(Click(CENTRES["eye_1"]))
        case.session.accept()
        case.finish()
    assert (project.status("eye_1").by, lessons()) == ("hand", 2)
    states = {outcome.case: outcome.state for outcome in run_project(project, device="cpu", threads=1, again=True)}
    assert states == {"eye_0": "left", "eye_1": "left", "eye_2": "done"}
    records = [json.loads(project.report_path(name).read_text())["study_record"] for name in NAMES]
    assert records == [1, 2, 2]


def test_lessons_that_wait_are_learnt_before_a_case_is_done(project):
    with open_case(project, "eye_0", device="cpu") as case:
        case.session.add(Click(CENTRES["eye_0"]))
        case.session.accept(learn=False)
        assert lessons() == 0
        case.finish()
    assert lessons() == 1
    assert json.loads(project.report_path("eye_0").read_text())["study_record"] == 1


def test_where_nothing_is_left_to_do_accepted_cases_are_not_tried(project, monkeypatch):
    for name in NAMES[:2]:
        teach_case(project, name, "first.json", device="cpu")
    tried = []
    monkeypatch.setattr(workbench, "tried_on_each_other", lambda *_: tried.append(1) or 0.25)
    assert {outcome.state for outcome in run_project(project, NAMES[:2], device="cpu", threads=1)} == {"left"}
    assert not tried
    assert {outcome.state for outcome in run_project(project, device="cpu", threads=1)} == {"left", "done"}
    assert tried == [1]


def test_a_click_file_for_all_that_cannot_be_read_is_refused_once(project, tmp_path):
    (tmp_path / "damaged.json").write_text("{")
    with pytest.raises(ReadError, match=r"damaged\.json"):
        list(run_project(project, clicks=tmp_path / "damaged.json", device="cpu"))
    assert {project.status(name).state for name in NAMES} == {"waiting"}


def test_a_case_is_taught_once(project):
    teach_case(project, "eye_0", "first.json", device="cpu")
    with pytest.raises(SessionError, match="is done already"):
        teach_case(project, "eye_0", "first.json", device="cpu")
    assert lessons() == 1


def test_a_case_whose_teaching_was_stopped_can_be_gone_on_with(project, monkeypatch):
    def stopping(done, _):
        if done == 3:  # the clicks and what was accepted
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teach_case(project, "eye_0", "first.json", device="cpu", on_action=stopping)
    (project.folder / "others.json").write_text(json.dumps({"clicks": [{"voxel": [3, 3]}]}))
    with pytest.raises(SessionError, match=r"begun already, with other clicks; expected one that waits \(open_case in Python goes on"):
        teach_case(project, "eye_0", project.folder / "others.json", device="cpu")
    with open_case(project, "eye_0", device="cpu") as case:
        assert len(case.session.clicks) == 2
        case.session.accept()
        case.finish()
    assert (project.status("eye_0").state, lessons()) == ("done", 1)


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_teaching_that_was_stopped_goes_on_where_it_stopped(project, monkeypatch, stop):
    def stopping(done, _):
        if done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teach_case(project, "eye_0", "first.json", device="cpu", on_action=stopping)
    told = []
    assert teach_case(project, "eye_0", "first.json", device="cpu", on_action=lambda *both: told.append(both)).state == "done"
    assert told == [(number, 5) for number in range(stop + 1 if stop > 1 else 1, 6)]
    teach_case(project, "eye_1", "first.json", device="cpu")
    journals = [read_journal(project.session_folder(name, project.status(name).session))[1] for name in ("eye_0", "eye_1")]
    assert [event.kind for event in journals[0]] == [event.kind for event in journals[1]]
    assert lessons() == 2


@pytest.mark.parametrize("wrong", [{"voxel": [900, 1]}, {"voxel": [1, 1, 1]}, {"voxel": [1, 1], "objekt": 2}])
def test_a_wrong_click_begins_no_case_and_teaches_nothing(project, tmp_path, wrong):
    right = {"voxel": CENTRES["eye_0"]}
    (tmp_path / "wrong.json").write_text(json.dumps({"clicks": [right, {"object": 2, **wrong}]}))
    with pytest.raises(ApprenticeError, match="click 2 of"):
        teach_case(project, "eye_0", "wrong.json", device="cpu")
    assert (project.status("eye_0").state, lessons()) == ("waiting", 0)
    assert teach_case(project, "eye_0", "first.json", device="cpu").state == "done"


def test_a_case_that_was_done_elsewhere_is_taken_over(project, tmp_path):
    session = open_session(files.read(project["eye_0"].image), folder=tmp_path / "window", cohort="eyes", device="cpu")
    session.add(Click(CENTRES["eye_0"]))
    session.accept()
    session.close()
    assert take_case(project, "eye_0", tmp_path / "window", device="cpu").state == "done"
    np.testing.assert_array_equal(labels_of(project, "eye_0"), replay_labels(tmp_path / "window"))
    assert lessons() == 1
    assert len(read_journal(project.session_folder("eye_0", project.status("eye_0").session))[1]) == 3
    with pytest.raises(SessionError, match="expected 'eye_0'"):
        take_case(project, "eye_1", tmp_path / "window", device="cpu")
    assert project.status("eye_1").state == "waiting"
    assert not list(project.case_folder("eye_1").glob("session-*"))


@pytest.mark.parametrize("named", ["downloads", "downloads/journal.jsonl", "downloads/anna.jsonl"])
def test_of_a_folder_the_session_that_is_named_is_taken_over_and_nothing_else(project, tmp_path, named):
    for name, folder in (("journal.jsonl", tmp_path / "downloads"), ("anna.jsonl", tmp_path / "anna")):
        session = open_session(files.read(project["eye_0"].image), folder=folder, device="cpu")
        session.add(Click(CENTRES["eye_0"] if name == "journal.jsonl" else (5, 5)))
        session.accept()
        session.close()
    (tmp_path / "anna" / "journal.jsonl").rename(tmp_path / "downloads" / "anna.jsonl")
    (tmp_path / "downloads" / "letter.txt").touch()
    (tmp_path / "downloads" / "photos").mkdir()
    expected = replay_labels(tmp_path / named)
    take_case(project, "eye_0", named, device="cpu")
    np.testing.assert_array_equal(labels_of(project, "eye_0"), expected)
    copied = {path.name for path in project.session_folder("eye_0", project.status("eye_0").session).iterdir()} - {"in-use.lock"}
    assert copied == {"journal.jsonl"} | (set() if "anna" in named else {"model-000002.checkpoint"})


def test_a_session_of_another_study_is_not_taken_over(project, tmp_path, capsys):
    for folder, study in (("other", "noses"), ("none", None)):
        session = open_session(files.read(project["eye_0"].image), folder=tmp_path / folder, cohort=study, device="cpu")
        session.add(Click(CENTRES["eye_0"]))
        session.accept()
        session.close()
    said = refused(capsys, "take", "project", "eye_0", "--journal", tmp_path / "other", "--device", "cpu")
    assert "of the study 'noses'" in said
    assert "expected a session of the project's study 'eyes', or of none" in said
    assert project.status("eye_0").state == "waiting"
    assert command("take", "project", "eye_0", "--journal", tmp_path / "none", "--device", "cpu") == 0
    assert "(its session is of no study: 'eyes' learns nothing from it)" in capsys.readouterr().out
    assert labels_of(project, "eye_0")[CENTRES["eye_0"]] == 1
    before = lessons()
    with open_case(project, "eye_0", device="cpu") as case:
        case.session.select(2)
        case.session.add(Click((5, 5)))
        case.session.accept()
        assert "of no study" in case.finish().reason
    assert lessons() == before
    assert {cohort.name for cohort in cohorts()} == {"noses"}


def test_neither_teaching_nor_taking_over_replaces_labels_of_others(project, tmp_path):
    truth = project.folder / "labels" / "eye_0_labels.png"
    truth.parent.mkdir()
    Picture.fromarray(np.full((64, 80), 7, np.uint8)).save(truth)
    kept = truth.read_bytes()
    session = open_session(files.read(project["eye_0"].image), folder=tmp_path / "window", cohort="eyes", device="cpu")
    session.add(Click(CENTRES["eye_0"]))
    session.close()
    with pytest.raises(WriteError, match="was not written by this project"):
        teach_case(project, "eye_0", "first.json", device="cpu")
    with pytest.raises(WriteError, match="was not written by this project"):
        take_case(project, "eye_0", tmp_path / "window", device="cpu")
    assert (project.status("eye_0").state, lessons(), truth.read_bytes()) == ("waiting", 0, kept)
    assert not list(project.case_folder("eye_0").glob("session-*"))


def test_what_was_stated_of_a_session_that_is_taken_over_counts_in_all_that_is_written(project, tmp_path):
    plain = files.read(project["eye_0"].image)
    stated = replace(plain, affine=np.diag([0.5, 0.5, 1.0]), units="micrometer")
    session = open_session(stated, folder=tmp_path / "window", device="cpu")
    session.add(Click(CENTRES["eye_0"]))
    session.accept()
    session.close()

    def areas():
        (row,) = json.loads(project.report_path("eye_0").read_text("utf-8"))["table"]
        return {key: value for key, value in row.items() if key.startswith("area")}

    take_case(project, "eye_0", tmp_path / "window", device="cpu")
    before = areas()
    with open_case(project, "eye_0", device="cpu") as case:
        assert case.image.spacing == (0.5, 0.5)
        case.finish()
    assert areas() == before
    assert "area_micrometer2" in before


def test_an_example_without_labels_does_not_stop_a_run(project):
    for name in NAMES[:2]:
        teach_case(project, name, "first.json", device="cpu")
    (project.folder / project.status("eye_1").labels).unlink()
    (outcome,) = run_project(project, ["eye_2"], device="cpu", threads=1)
    assert outcome.state == "done"
    assert "case 'eye_1' was passed over" in project.status("eye_2").reason
    (project.folder / project.status("eye_0").labels).unlink()
    with pytest.raises(SessionError, match=r"a case done by hand whose image and labels are there \(not so of eye_0, eye_1\)"):
        list(run_project(project, device="cpu", threads=1))


def release(project, share):
    """Give a project the shipped weights, changed a little."""
    network = load_weights().network
    with torch.no_grad():
        next(network.parameters()).mul_(share)
    save_weights(network, project.folder / "unet.safetensors")


@pytest.mark.parametrize("policy", ["pi", "recall"])
def test_a_run_of_another_release_goes_by_what_the_study_remembers(policy, tmp_path, images):
    project = create_project(tmp_path / "project", Settings("eyes", policy, "unet.safetensors", names={1: "disc"}), images)
    release(project, 1.0001)
    teach_case(project, "eye_0", "first.json", device="cpu")
    release(project, 1.001)
    outcomes = {outcome.case: outcome.state for outcome in run_project(project, device="cpu", threads=1)}
    assert outcomes == {"eye_0": "left", "eye_1": "done", "eye_2": "done"}
    after = max(cohorts(), key=lambda one: one.records[-1].cause == "carried over")
    assert [record.cause for record in after.records] == ["carried over"]
    with open_case(project, "eye_1", device="cpu") as case:
        known = case.session._segmenter.snapshot()
        assert (len(known.memory), known.examples) == (1, 8)
        assert case.session.made_with == ""
    with open_case(project, "eye_0", device="cpu") as case:
        assert case.session.made_with
        np.testing.assert_array_equal(case.session.labels, labels_of(project, "eye_0"))


def test_without_anything_to_go_by_a_run_does_not_begin(project):
    with pytest.raises(SessionError, match="nothing says where to click in the cases of 'project'"):
        list(run_project(project, device="cpu"))
    with pytest.raises(SessionError, match=r"nothing\.json are not there"):
        list(run_project(project, clicks="nothing.json", device="cpu"))


# --- the command line ---


def test_a_cohort_from_the_first_case_to_the_table(images, tmp_path, capsys):
    assert command("new", "study", "--study", "eyes", "--name", "1=disc", images[0], images[1]) == 0
    assert command("add", "study", images[2], images[0]) == 0
    assert "3 cases, 1 of them new" in capsys.readouterr().out
    assert command("next", "study") == 0
    assert capsys.readouterr().out == f"eye_0\t{images[0]}\n"
    assert command("teach", "study", "eye_0", "--clicks", "first.json", "--device", "cpu") == 0
    assert "eye_0_labels.png" in capsys.readouterr().out
    assert command("run", "study", "--device", "cpu", "--threads", 1) == 0
    out, err = capsys.readouterr()
    assert "This run: done 2, left 1.\nCases: 3, done 3.\nObjects: 3. Table: " in out
    assert "eye_1: done, 1 object, expected error" in err
    rows = list(csv.DictReader((tmp_path / "study" / "cohort.csv").open()))
    assert [(row["case"], row["class"], row["done_by"], row["study_record"]) for row in rows] == [
        ("eye_0", "disc", "hand", "1"),
        ("eye_1", "disc", "run", "1"),
        ("eye_2", "disc", "run", "1"),
    ]
    assert all(math.isfinite(float(row["expected_error"])) for row in rows[1:])
    assert command("status", "study") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in lines[:2]] == [["eye_0", "done", "by", "hand"], ["eye_1", "done", "by", "run"]]
    assert lines[-1] == "Study eyes. Cases: 3, done 3."
    assert command("next", "study", "--by", "error") == 0
    worst = max(NAMES[1:], key=lambda name: open_project("study").status(name).expected_error)
    assert capsys.readouterr().out.startswith(worst)
    assert command("table", "study", "--out", "again.csv") == 0
    assert "Objects: 3." in capsys.readouterr().out
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "study" / "cohort.csv").read_text()
    assert "no case of 'study' is left" in refused(capsys, "next", "study")


def test_images_that_cannot_be_cases_are_named_and_the_others_added(images, tmp_path, capsys):
    nibabel.Nifti1Image(np.zeros((4, 5, 6, 3), np.uint8), np.eye(4)).to_filename(tmp_path / "series.nii.gz")
    cut, series = tmp_path / "cut.png", tmp_path / "series.nii.gz"
    cut.write_bytes(images[0].read_bytes()[:200])
    assert "'cut.png' is damaged" in refused(capsys, "new", tmp_path / "p", cut, series, "--study", "eyes")
    assert not (tmp_path / "p").exists()
    assert command("new", tmp_path / "p", images[0], cut, "--study", "eyes") == 1
    out, err = capsys.readouterr()
    assert "1 case." in out
    assert err.startswith("apprentice: 'cut.png' is damaged")
    assert command("add", tmp_path / "p", images[1], series, cut, images[2]) == 1
    out, err = capsys.readouterr()
    assert "3 cases, 2 of them new" in out
    assert "'series.nii.gz' has 3 time points; expected one volume, in a file of its own; it was not added" in err
    assert [case.image for case in open_project(tmp_path / "p").cases] == images
    assert command("add", tmp_path / "p", *images) == 0


def test_images_become_a_project(images, tmp_path, capsys):
    assert "--out" in refused(capsys, "run", *images)
    assert "--study" in refused(capsys, "run", *images, "--out", "made")
    images[2].write_bytes(b"")
    assert command("run", *images, "--out", "made", "--study", "eyes", "--clicks", "first.json", "--device", "cpu") == 1
    out, err = capsys.readouterr()
    assert "This run: done 2, failed 1." in out
    assert "eye_2: failed, 'eye_2.png' is empty" in err
    assert command("run", *images, "--out", "made", "--clicks", "first.json", "--only", "eye_0", "--device", "cpu") == 0
    assert "This run: left 1." in capsys.readouterr().out
    assert "a project of 'eyes'" in refused(capsys, "run", *images, "--out", "made", "--study", "noses")


def test_a_table_takes_the_place_of_no_project(project, capsys):
    before = (project.folder / "project.toml").read_bytes()
    for arguments in (("table", "project", "--out"), ("run", "project", "--clicks", "first.json", "--table")):
        assert "project.toml was asked for" in refused(capsys, *arguments, "project/project.toml")
    assert (project.folder / "project.toml").read_bytes() == before
    assert {project.status(name).state for name in NAMES} == {"waiting"}


def test_a_table_takes_the_place_of_no_names_that_the_run_has_written(images, capsys, tmp_path):
    assert command("new", "p", images[0], "--study", "s", "--name", "1=disc") == 0
    capsys.readouterr()
    names = tmp_path / "p" / "labels" / "eye_0_labels.tsv"
    assert command("run", "p", "--clicks", "first.json", "--device", "cpu", "--table", names) == 2
    assert "where the names of the objects in 'eye_0_labels.png' belong" in capsys.readouterr().err
    assert names.read_text().startswith("index\tname\tcolor\n1\tdisc")
    assert open_project(tmp_path / "p").status("eye_0").state == "done"


@pytest.mark.parametrize("what", ["state", "report"])
def test_a_case_that_cannot_be_read_is_told_and_the_others_go_on(project, capsys, what):
    teach_case(project, "eye_0", "first.json", device="cpu")
    assert command("run", "project", "--only", "eye_1", "--device", "cpu", "--threads", 1) == 0
    capsys.readouterr()
    if what == "state":
        (project.case_folder("eye_1") / "state.json").write_text("")
    else:
        project.report_path("eye_1").unlink()
    todo = "without that file the case waits again" if what == "state" else "write it again with `cohort run --again --only eye_1`"
    assert command("status", "project") == int(what == "state")
    lines = capsys.readouterr().out.splitlines()
    assert (len(lines), lines[-1].endswith("damaged 1.")) == (4, what == "state")
    assert todo in lines[1] or what == "report"
    assert command("next", "project") == int(what == "state")
    out, err = capsys.readouterr()
    assert (out.split()[0], todo in err) == ("eye_2", what == "state")
    assert command("run", "project", "--device", "cpu", "--threads", 1) == 1
    out, err = capsys.readouterr()
    assert f"This run: done 1, {'damaged 1, left 1' if what == 'state' else 'left 2'}." in out
    assert [todo in line for line in err.splitlines() if "eye_1" in line] == [True]
    assert command("table", "project") == 1
    assert [row["case"] for row in csv.DictReader((project.folder / "cohort.csv").open())] == ["eye_0", "eye_2"]
    if what == "state":
        with pytest.raises(ReadError, match=todo), open_case(project, "eye_1", device="cpu"):
            pass
        with pytest.raises(ReadError, match=todo):
            teach_case(project, "eye_1", "first.json", device="cpu")
        (project.case_folder("eye_1") / "state.json").unlink()
        next(project.folder.glob("labels/eye_1_labels.png")).unlink()
        next(project.folder.glob("labels/eye_1_labels.tsv")).unlink()
    assert command("run", "project", "--again", "--only", "eye_1", "--device", "cpu", "--threads", 1) == 0


def test_what_cannot_be_used_is_told(project, images, capsys, tmp_path):
    for name in ("nowhere", "first.json"):
        assert f"no project in {tmp_path / name}" in refused(capsys, "status", name)
    (tmp_path / "empty").mkdir()
    assert "no project in" in refused(capsys, "run", "empty")
    assert "'nowhere' does not exist" in refused(capsys, "run", "nowhere")
    assert "no case 'eye_9'" in refused(capsys, "run", "project", "--only", "eye_9", "--clicks", "first.json", "--device", "cpu")
    assert "never" in refused(capsys, "new", "other", images[0], "--study", "s", "--policy", "never")
    for name in ("disc", "0=disc", "-1=disc"):
        assert "expected N=NAME with a number from 1" in refused(capsys, "new", "other", images[0], "--study", "s", f"--name={name}")
    twice = ("--name", "1=cup", "--name", "1=disc")
    assert "expected one name for an object" in refused(capsys, "new", "other", images[0], "--study", "s", *twice)
    assert "empty' is a folder; expected the image of a case" in refused(capsys, "new", "other", "empty", "--study", "s")
    assert "holds no clicks of any case; expected CASE.json" in refused(capsys, "run", "project", "--clicks", "empty", "--device", "cpu")
    assert "holds a project already" in refused(capsys, "new", "project", images[0], "--study", "s")
    assert "cannot be reached" in refused(
        capsys, "run", "project", "--clicks", "first.json", "--scheduler", "tcp://127.0.0.1:9", "--device", "cpu"
    )
    assert {project.status(name).state for name in NAMES} == {"waiting"}
