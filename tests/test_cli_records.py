"""`apprentice report` and `apprentice replay`, with a small network that is really there."""

from __future__ import annotations

import csv
import json
import os

import nibabel
import numpy as np
import pytest

from napari_apprentice import assembly, cli, files
from napari_apprentice.journal import Journal, read_journal, replay_labels
from napari_apprentice.legend import Legend, legend_path, read_legend, write_legend
from napari_apprentice.networks import build
from napari_apprentice.types import Click, Image
from napari_apprentice.weights import save_weights

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    network = build("unet", {"widths": [8, 8, 8], "blocks": [1, 1, 1], "head_width": 4})
    return save_weights(network, tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture(scope="module")
def work(weights, tmp_path_factory):
    """A folder with the image ``scan.nii.gz``, the session ``work`` and the labels ``labels.nii.gz`` that it saved."""
    folder = tmp_path_factory.mktemp("case")
    data = np.random.default_rng(0).integers(0, 60, (40, 36, 6), dtype=np.uint8)
    data[10:22, 8:20] += 120
    nibabel.save(nibabel.Nifti1Image(data, np.diag([1.0, 1, 3, 1])), folder / "scan.nii.gz")
    image = files.read(folder / "scan.nii.gz")
    session = assembly.open_session(image, weights=weights, device="cpu", folder=folder / "work")
    session.add(Click((2, 14, 15)))
    session.add(Click((2, 30, 30), False))
    session.undo()
    session.add(Click((2, 26, 35), False))
    session.accept()
    session.propagate(1)
    session.add(Click((4, 25, 30)))
    session.paint((slice(0, 1), slice(0, 3), slice(0, 3)), np.full((1, 3, 3), 7))
    session.close()
    session = assembly.resume_session(folder / "work", image, weights=weights, device="cpu")
    session.accept()
    voxels = np.argwhere(session.labels == 1)
    session.split(1, [tuple(voxels[0]), tuple(voxels[-1])])
    session.merge(7, 1)
    session.name(1, "cell")
    session.go_back(1)
    session.add(Click((5, 14, 15)))
    session.undo()
    session.close()
    files.write(folder / "labels.nii.gz", session.labels, like=image)
    return folder


def run(capsys, *arguments):
    """Exit status, what was printed, and the one sentence of the error."""
    code = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, next((line for line in err.splitlines() if line.startswith("apprentice:")), "")


def test_the_journal_says_what_the_model_ran_on_at_the_start_and_after_the_resumption(work):
    header, events = read_journal(work / "work")
    assert header.computer.device == "cpu"
    assert header.computer.torch == torch.__version__
    assert [event.kind for event in events if event.computer is not None] == ["accept"]


# --- replay ---


def test_the_same_weights_give_the_same_labels_bit_for_bit(work, weights, tmp_path, capsys):
    out = tmp_path / "again.nii.gz"
    told = run(capsys, "replay", work / "work", work / "scan.nii.gz", "--weights", weights, "--out", out, "--check", work / "labels.nii.gz")
    assert told[0] == 0
    assert told[2] == ""
    assert "All labels are as they were recorded, bit for bit." in told[1]
    assert "may come out otherwise" not in told[1]
    np.testing.assert_array_equal(files.read_labels(out), replay_labels(work / "work"))
    np.testing.assert_array_equal(nibabel.load(out).affine, nibabel.load(work / "scan.nii.gz").affine)


def test_replay_writes_what_the_objects_are_called_and_no_names_of_older_ones(work, weights, tmp_path, capsys):
    out = tmp_path / "again.nii.gz"
    write_legend(legend_path(out), Legend().naming(2, "older"))
    assert run(capsys, "replay", work / "work", work / "scan.nii.gz", "--weights", weights, "--out", out)[0] == 0
    assert read_legend(legend_path(out)).names == {1: "cell"}
    legend_path(out).write_text("subject\tage\n1\t70\n")
    out.unlink()
    code, _, sentence = run(capsys, "replay", work / "work", work / "scan.nii.gz", "--weights", weights, "--out", out)
    assert (code, "which is something else" in sentence, out.exists()) == (2, True, False)


def test_a_voxel_that_differs_is_one_sentence_and_exit_status_one(work, weights, tmp_path, capsys):
    image = files.read(work / "scan.nii.gz")
    other = np.array(files.read_labels(work / "labels.nii.gz"))
    other[3, 4, 5] += 1
    other[5, 0, :2] += 1
    check = files.write(tmp_path / "other.nii.gz", other, like=image)
    out = tmp_path / "again.nii.gz"
    code, _, sentence = run(capsys, "replay", work / "work", work / "scan.nii.gz", "--weights", weights, "--out", out, "--check", check)
    assert code == 1
    assert sentence == f"apprentice: 3 of {other.size} voxels differ from {check}, the first of them in slice 3"
    assert out.exists()


def test_other_weights_are_named_and_the_action_that_departs(work, tmp_path, capsys):
    torch.manual_seed(1)
    network = build("unet", {"widths": [8, 8, 8], "blocks": [1, 1, 1], "head_width": 4})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += torch.randn_like(parameter)
    other = save_weights(network, tmp_path / "other.safetensors")
    code, out, _ = run(capsys, "replay", work / "work", work / "scan.nii.gz", "--weights", other, "--out", tmp_path / "again.nii.gz")
    assert code == 0
    assert "may come out otherwise than recorded: it was made with the weights unet:" in out
    assert "are not as they were recorded, from action 1 (add of object 1 at (2, 14, 15)) on." in out


@pytest.fixture
def in_a_study(work, weights, tmp_path, monkeypatch):
    """Opens sessions of one study, and teaches it in them."""
    monkeypatch.setenv("APPRENTICE_HOME", str(tmp_path / "home"))
    image = files.read(work / "scan.nii.gz")

    def begin(name):
        return assembly.open_session(image, weights=weights, device="cpu", folder=tmp_path / name, cohort="study")

    def teach(session):
        session.add(Click((2, 14, 15)))
        session.add(Click((2, 26, 35), False))
        session.accept()

    return begin, teach


def test_a_session_that_began_with_a_taught_model_is_replayed_from_it(in_a_study, work, weights, tmp_path, capsys):
    begin, teach = in_a_study
    for name in ("first", "second"):
        session = begin(name)
        teach(session)
        session.close()
    assert session.versions.current.number == 2
    again = ("replay", tmp_path / "second", work / "scan.nii.gz", "--weights", weights, "--out", tmp_path / "out.nii.gz")
    code, out, _ = run(capsys, *again)
    assert code == 0
    assert "bit for bit" in out
    assert "otherwise" not in out
    (tmp_path / "second" / "model-000000.checkpoint").unlink()
    code, _, sentence = run(capsys, *again)
    assert code == 2
    assert "began with a model that had been taught (study study); expected it in" in sentence


def test_another_session_that_taught_the_study_meanwhile_is_named(in_a_study, work, weights, tmp_path, capsys):
    begin, teach = in_a_study
    first, second = begin("first"), begin("second")
    for session in (first, second):
        teach(session)
        session.close()
    for name, otherwise in (("first", False), ("second", True)):
        told = run(capsys, "replay", tmp_path / name, work / "scan.nii.gz", "--weights", weights, "--out", tmp_path / "out.nii.gz")
        assert told[0] == 0
        assert ("another session taught the study 'study' meanwhile" in told[1]) == otherwise


def test_replay_refuses_what_it_cannot_use(work, weights, tmp_path, capsys):
    other = files.save_image(tmp_path / "other.nii.gz", Image(np.zeros((1, 6, 36, 40), np.uint8), np.diag([3.0, 1, 1, 1]), "mm"))
    out = tmp_path / "out.nii.gz"
    asked = [
        ((work / "work", other, "--weights", weights, "--out", out), "expected 'scan' of shape"),
        ((tmp_path, work / "scan.nii.gz", "--weights", weights, "--out", out), "cannot be read"),
        ((work / "work", work / "scan.nii.gz", "--out", out, "--check", out), "both to write and to compare with"),
        ((work / "work", work / "scan.nii.gz", "--weights", weights, "--out", out, "--check", tmp_path / "no.nii.gz"), "no.nii.gz"),
    ]
    for arguments, words in asked:
        code, _, sentence = run(capsys, "replay", *arguments)
        assert code == 2
        assert words in sentence
    assert not out.exists()


# --- report ---


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Three sessions, of which one is empty, and a folder of truths for one of the two others."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    from napari_apprentice.fakes import DiskSegmenter, FakePolicy
    from napari_apprentice.session import Session

    (tmp_path / "truth").mkdir()
    for name in ("a", "b", "empty"):
        image = Image(np.random.default_rng(0).normal(100, 10, (1, 5, 30, 20)), np.diag([3.0, 1, 1, 1]), "mm", name=name)
        session = Session(image, DiskSegmenter(4.0), FakePolicy(), journal=Journal.create(tmp_path / "sessions" / name, image))
        if name != "empty":
            session.add(Click((2, 10, 10)))
            session.accept()
            session.add(Click((3, 20, 10)))
        if name == "a":
            files.write(tmp_path / "truth" / "a_labels.nii.gz", session.labels, like=image)
        session.close()
    return tmp_path


def test_report_writes_a_page_and_both_tables(study, capsys):
    page, clicks, objects = (study / name for name in ("out/report.html", "clicks.csv", "objects.csv"))
    outs = ("--out", page, "--csv", clicks, "--objects", objects)
    code, out, _ = run(capsys, "report", study / "sessions", *outs, "--truth", study / "truth")
    assert code == 0
    assert "Cases: 2, clicks: 4." in out
    assert "Sessions without an action, left out: 1" in out
    assert "Without a truth: b" in out
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert [row["case"] for row in csv.DictReader(clicks.open())] == ["a", "a", "b", "b"]
    rows = list(csv.DictReader(objects.open()))
    assert [(row["case"], row["object"], row["dice"]) for row in rows] == [("a", "1", "1"), ("a", "2", "1"), ("b", "1", ""), ("b", "2", "")]


def test_report_compares_a_time_point_with_its_own_truth(study, capsys):
    objects, truth = study / "objects.csv", study / "truth" / "a_labels.nii.gz"
    truth.rename(study / "truth" / "a_t1_labels.nii.gz")
    asked = ("report", study / "sessions", "--objects", objects, "--truth", study / "truth")
    assert "Without a truth: a, b" in run(capsys, *asked)[1]
    assert "Without a truth: b" in run(capsys, *asked, "--time", "1")[1]
    assert [row["dice"] for row in csv.DictReader(objects.open())] == ["1", "1", "", ""]


def test_report_says_where_clicks_are_in_the_unit_that_is_wished(study, capsys):
    for unit, per_mm in (("mm", 1), ("nm", 1e6)):
        table = study / f"{unit}.csv"
        assert run(capsys, "report", study / "sessions", "--csv", table, "--unit", unit)[0] == 0
        assert [float(row[f"x_{unit}"]) for row in csv.DictReader(table.open())] == [10 * per_mm] * 4


def test_report_takes_one_truth_for_one_session(study, capsys):
    truth = study / "truth" / "a_labels.nii.gz"
    objects = study / "objects.csv"
    assert run(capsys, "report", study / "sessions" / "a" / "journal.jsonl", "--objects", objects, "--truth", truth)[0] == 0
    assert [row["iou"] for row in csv.DictReader(objects.open())] == ["1", "1"]


@pytest.mark.parametrize("gone", [False, True])
def test_report_takes_no_truth_of_another_place_where_the_unit_is_not_named(tmp_path, monkeypatch, capsys, gone):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    from napari_apprentice.fakes import DiskSegmenter, FakePolicy
    from napari_apprentice.session import Session

    def unnamed(name, values, origin):
        affine = np.eye(4)
        affine[:3, 3] = origin
        nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / name)  # of which nibabel names no unit
        return tmp_path / name

    image = files.read(unnamed("scan.nii.gz", np.random.default_rng(0).integers(0, 99, (20, 30, 5), np.uint8), (7, 8, 9)))
    session = Session(image, DiskSegmenter(4.0), FakePolicy(), journal=Journal.create(tmp_path / "work", image))
    session.add(Click((2, 10, 10)))
    session.accept()
    session.close()
    here, there = (unnamed(f"{x}.nii.gz", session.labels.T, (x, 8, 9)) for x in (7, 57))
    table = tmp_path / "table.csv"
    assert run(capsys, "measure", tmp_path / "scan.nii.gz", there, "--out", table)[0] == 2
    if gone:
        (tmp_path / "scan.nii.gz").unlink()
    code, _, sentence = run(capsys, "report", tmp_path / "work", "--objects", table, "--truth", there)
    assert (code, "lies up to 50 voxels away from 'scan'" in sentence, table.exists()) == (2, True, False)
    assert run(capsys, "report", tmp_path / "work", "--objects", table, "--truth", here)[0] == 0
    assert [row["dice"] for row in csv.DictReader(table.open())] == ["1"]


def test_report_refuses_what_it_cannot_use(study, capsys):
    page = study / "report.html"
    (study / "shifted").mkdir()
    shifted = Image(np.zeros((1, 5, 30, 20), np.uint8), np.diag([2.0, 1, 1, 1]), "mm")
    files.write(study / "shifted" / "a.nii.gz", np.zeros((5, 30, 20), np.uint8), like=shifted)
    asked = [
        ((study / "sessions",), "neither --out nor --csv nor --objects arrived"),
        ((study / "truth", "--out", page), "is no journal and holds none"),
        ((study / "sessions" / "empty", "--out", page), "nothing was done in 1 session;"),
        ((study / "sessions", "--out", page, "--truth", study / "truth" / "a_labels.nii.gz"), "expected a folder of truths"),
        ((study / "sessions", "--out", page, "--truth", study / "shifted"), "has a spacing of 2"),
    ]
    for arguments, words in asked:
        code, _, sentence = run(capsys, "report", *arguments)
        assert code == 2
        assert words in sentence
    assert not page.exists()


def test_pages_and_tables_take_the_place_of_no_record_and_of_no_other(study, capsys):
    journal, page = study / "sessions" / "a" / "journal.jsonl", study / "report.html"
    before = journal.read_bytes()
    for option in ("--out", "--csv", "--objects"):
        code, _, sentence = run(capsys, "report", study / "sessions", option, journal)
        assert (code, "expected a text file" in sentence, journal.read_bytes()) == (2, True, before)
    code, _, sentence = run(capsys, "report", study / "sessions", "--out", page, "--objects", study / "out" / ".." / "report.html")
    assert (code, "expected a file for each" in sentence, page.exists()) == (2, True, False)


def test_a_damaged_journal_among_many_is_named(study, capsys):
    journal = study / "sessions" / "b" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([lines[0], json.dumps({"sequence": 1}).encode() + b"\n", *lines[2:]]))
    code, _, sentence = run(capsys, "report", study / "sessions", "--out", study / "report.html")
    assert code == 2
    assert str(journal) in sentence
    assert "damaged" in sentence
