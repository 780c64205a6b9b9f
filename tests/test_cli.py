from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from PIL import Image as Picture

from napari_apprentice import assembly, cli, demo, files, texts
from napari_apprentice.cli import _arguments
from napari_apprentice.cohorts import Cohort, cohorts
from napari_apprentice.fakes import DiskSegmenter, DiskWeights, FakePolicy, FakeStore
from napari_apprentice.journal import Journal
from napari_apprentice.legend import Legend, legend_path, read_legend, write_legend
from napari_apprentice.session import Session
from napari_apprentice.types import DEFAULT_POLICY, Click, Image, InputError, LearningReport, WeightsError, WriteError
from napari_apprentice.versions import Version

AFFINE = np.array([[0, 0, -2.0, 7], [0, 0.5, 0, -3], [0.7, 0, 0, 1], [0, 0, 0, 1]])


@pytest.fixture
def disks(monkeypatch):
    """The assembly builds fakes instead of networks; gives the list of what it was asked for."""
    asked = []

    def load_segmenter(weights=None, network=None, device="auto"):
        asked.append({"weights": weights, "network": network, "device": device})
        return DiskSegmenter(4.0)

    def make_policy(name):
        if name not in ("none", "pi", "mi+pi", "recall"):
            raise InputError(f"a policy named {name!r} was asked for; expected none, pi, mi+pi or recall")
        return FakePolicy(0, 0) if name == "none" else FakePolicy()

    def open_session(image, *, weights=None, policy=DEFAULT_POLICY, device="auto", knowledge=None, cohort=None, **begun):
        study = Cohort(cohort, "disks", FakeStore()) if cohort else None
        start = study.start() if study else knowledge and Version(1, origin="file", snapshot=FakeStore().load(knowledge))
        return Session(image, load_segmenter(weights, None, device), make_policy(policy), start=start, cohort=study, **begun)

    for function in (load_segmenter, make_policy, open_session):
        monkeypatch.setattr(assembly, function.__name__, function)
    return asked


@pytest.fixture
def volume(tmp_path):
    """A NIfTI volume with an affine that is not the identity."""
    data = np.random.default_rng(0).integers(0, 255, (30, 24, 8), dtype=np.uint8)
    path = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(data, AFFINE), path)
    return path


def refused(capsys, *arguments):
    """The one sentence that a refused command prints."""
    assert cli.main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("apprentice:")]
    assert out == ""
    return line


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are Unicode here")
def test_names_that_are_not_utf_8_are_read_written_and_told(disks, volume, tmp_path, capsys):
    scan = volume.rename(volume.with_name(os.fsdecode(b"scan \xff.nii.gz")))
    labels, table = scan.with_name(os.fsdecode(b"labels \xff.nii.gz")), scan.with_name(os.fsdecode(b"\xff.csv"))
    command = ["segment", str(scan), "--clicks", str(write_clicks(tmp_path)), "--policy", "none", "--out", str(labels)]
    assert cli.main(command) == 0
    assert cli.main(["measure", str(scan), str(labels), "--out", str(table)]) == 0
    assert rows_of(table)[0]["case"] == "scan \\udcff"
    assert "labels \\udcff.nii.gz" in capsys.readouterr().out
    assert "no \\udcff.nii' does not exist" in refused(capsys, "measure", os.fsdecode(b"no \xff.nii"), labels, "--out", table)


@pytest.mark.skipif(os.name == "nt", reason="pipes break otherwise here")
def test_who_reads_no_further_is_told_nothing():
    read, write = os.pipe()
    os.close(read)
    code = "import sys; from napari_apprentice.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "info"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full device here")
def test_a_full_standard_output_is_told_in_a_sentence():
    code = "import sys; from napari_apprentice.cli import main; sys.exit(main(sys.argv[1:]))"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code, "info"], stdout=full, stderr=subprocess.PIPE, check=False, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("apprentice: not all could be written (No space left on device)")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full device here")
def test_a_full_standard_error_ends_no_work(volume, tmp_path):
    code = "import sys; from napari_apprentice.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["segment", str(volume), "--clicks", str(write_clicks(tmp_path)), "--policy", "none"]
    with open("/dev/full", "w") as full:
        codes = [
            subprocess.run([sys.executable, "-c", code, *arguments, "--out", str(out)], stderr=full, check=False).returncode
            for out in (tmp_path / "labels.nii.gz", tmp_path / "labels.xyz")
        ]
    assert codes == [0, 2]
    assert (tmp_path / "labels.nii.gz").exists()


@pytest.mark.parametrize("before", ["info", "segment {volume} --out {folder}/a.nii --clicks", "report --out {folder}/a.html"])
def test_what_the_system_takes_for_no_name_is_told_in_a_sentence(volume, tmp_path, capsys, before):
    assert "(File name too long)" in refused(capsys, *before.format(volume=volume, folder=tmp_path).split(), "x" * 300)


def test_an_image_is_no_label_file_of_its_own(volume, tmp_path, capsys):
    assert "expected a label file beside the image" in refused(capsys, "measure", volume, volume, "--out", tmp_path / "t.csv")
    assert not (tmp_path / "t.csv").exists()


# --- help ---


@pytest.mark.parametrize("command", ["demo", "segment", "propagate", "measure", "benchmark", "train", "info", "report", "replay"])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"])
    assert stopped.value.code == 0
    assert f"apprentice {command}" in capsys.readouterr().out


def test_every_command_and_action_says_what_it_does():
    silent, parsers = [], [cli._parser()]
    while parsers:
        parser = parsers.pop()
        silent += [] if parser.description else [parser.prog]
        groups = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        parsers += [one for group in groups for one in group.values()]
    assert silent == []


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    named = set(re.findall(r"^    ([a-z]+) +\w", capsys.readouterr().out, re.MULTILINE))
    assert named == {"demo", "segment", "propagate", "measure", "benchmark", "train", "info", "cohort", "report", "replay"}


def test_without_a_command_the_usage_is_shown(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([])
    assert stopped.value.code == 2
    assert "usage: apprentice" in capsys.readouterr().err


# --- segment ---

CLICKS = [
    {"voxel": [2, 10, 12], "positive": True, "axis": 0, "object": 3},
    {"voxel": [2, 10, 15], "positive": False, "axis": 0, "object": 3},
    {"voxel": [5, 12, 12], "object": 7},
]


def write_clicks(folder, clicks=CLICKS):
    path = folder / "clicks.json"
    path.write_text(json.dumps({"clicks": clicks}))
    return path


def by_hand(path):
    """What a session makes of CLICKS."""
    session = Session(files.read(path), DiskSegmenter(4.0), FakePolicy())
    session.select(3)
    session.add(Click((2, 10, 12), True, 0))
    session.add(Click((2, 10, 15), False, 0))
    session.accept()
    session.select(7)
    session.add(Click((5, 12, 12), True, 0))
    session.accept()
    return session.labels


def test_segment_does_what_the_clicks_say(disks, volume, tmp_path, capsys):
    out = tmp_path / "labels.nii.gz"
    assert cli.main(["segment", str(volume), "--clicks", str(write_clicks(tmp_path)), "--out", str(out), "--device", "cpu"]) == 0
    labels = files.read_labels(out)
    np.testing.assert_array_equal(labels, by_hand(volume))
    assert set(np.unique(labels)) == {0, 3, 7}
    np.testing.assert_array_equal(nibabel.load(out).affine, nibabel.load(volume).affine)
    assert nibabel.load(out).shape == nibabel.load(volume).shape
    assert disks == [{"weights": None, "network": None, "device": "cpu"}]
    assert str(out) in capsys.readouterr().out


def test_segment_learns_between_objects_only_if_the_policy_does(disks, volume, tmp_path):
    areas = {}
    for policy in ("none", "mi+pi"):
        out = tmp_path / f"{policy}.nii.gz"
        cli.main(["segment", str(volume), "--clicks", str(write_clicks(tmp_path)), "--out", str(out), "--policy", policy])
        areas[policy] = int((files.read_labels(out) == 7).sum())
    assert areas["mi+pi"] > areas["none"]


def test_segment_replays_the_journal_of_a_session(disks, volume, tmp_path):
    image = files.read(volume)
    began_with = np.zeros(image.shape, np.uint8)
    began_with[0, :4, :4] = 9
    session = Session(image, DiskSegmenter(4.0), FakePolicy(), labels=began_with, journal=Journal.create(tmp_path / "work", image))
    session.add(Click((2, 10, 12)))
    session.add(Click((2, 3, 3)))
    session.undo()
    session.accept(learn=False)
    session.add(Click((3, 10, 12)))
    session.learn()
    session.add(Click((3, 16, 12)))
    session.paint((slice(6, 7), slice(0, 2), slice(0, 2)), np.full((1, 2, 2), 4))
    session.select(20)
    session.add(Click((5, 10, 12)))
    session.discard()
    session.add(Click((5, 4, 12)))
    session.add(Click((7, 20, 12)))
    session.undo()
    session.close()
    for number, recording in enumerate((tmp_path / "work", tmp_path / "work" / "journal.jsonl")):
        out = tmp_path / f"{number}.nii.gz"
        assert cli.main(["segment", str(volume), "--clicks", str(recording), "--out", str(out)]) == 0
        np.testing.assert_array_equal(files.read_labels(out), session.labels)


def named_session(volume, folder):
    """A session that began with a named object 9, and called another one a cell."""
    image = files.read(volume)
    began_with = np.zeros(image.shape, np.uint8)
    began_with[0, :4, :4] = 9
    legend = Legend().naming(9, "nerve", "#123456")
    session = Session(image, DiskSegmenter(4.0), FakePolicy(), labels=began_with, legend=legend, journal=Journal.create(folder, image))
    session.add(Click((2, 10, 12)))
    session.accept()
    session.name(10, "cell")
    session.close()
    return session


def classes_in(volume, labels, table):
    """Number and class of every object, as a table of measures has them."""
    assert cli.main(["measure", str(volume), str(labels), "--out", str(table)]) == 0
    return {int(row["label"]): row["class"] for row in rows_of(table)}


def test_segment_knows_which_slices_a_session_began_with_that_nobody_had_looked_at(disks, volume, tmp_path):
    image, folder = files.read(volume), tmp_path / "work"
    first = Session(image, DiskSegmenter(4.0), FakePolicy(0, 0))
    first.add(Click((2, 10, 12)))
    first.accept()
    first.propagate()
    given = {"labels": first.labels, "origins": first.origins, "journal": Journal.create(folder, image)}
    session = Session(image, DiskSegmenter(4.0), FakePolicy(0, 0), **given)
    session.paint((slice(4, 5), slice(0, 6), slice(0, 6)), np.full((1, 6, 6), 1))
    session.propagate(1)
    session.close()
    assert cli.main(["segment", str(volume), "--clicks", str(folder), "--out", str(tmp_path / "out.nii.gz"), "--policy", "none"]) == 0
    np.testing.assert_array_equal(files.read_labels(tmp_path / "out.nii.gz"), session.labels)


def test_segment_writes_what_the_objects_are_called_and_no_names_of_older_ones(disks, volume, tmp_path):
    session, out, table = named_session(volume, tmp_path / "work"), tmp_path / "labels.nii.gz", tmp_path / "table.csv"
    assert set(np.unique(session.labels)) == {0, 9, 10}
    assert cli.main(["segment", str(volume), "--clicks", str(tmp_path / "work"), "--out", str(out)]) == 0
    assert classes_in(volume, out, table) == {9: "nerve", 10: "cell"}
    assert read_legend(legend_path(out)).color(9) == "#123456"
    write_legend(legend_path(out), Legend().naming(3, "vessel"))
    assert cli.main(["segment", str(volume), "--clicks", str(write_clicks(tmp_path)), "--out", str(out)]) == 0
    assert classes_in(volume, out, table) == {3: "", 7: ""}


def test_the_file_of_each_object_has_its_name_and_no_older_one(disks, volume, tmp_path):
    out = tmp_path / "m.mha"
    write_legend(tmp_path / "m_09.tsv", Legend().naming(1, "older"))
    named_session(volume, tmp_path / "work")
    assert cli.main(["segment", str(volume), "--clicks", str(tmp_path / "work"), "--out", str(out), "--each"]) == 0
    assert read_legend(tmp_path / "m_09.tsv") == Legend({1: "nerve"}, {"nerve": "#123456"})
    assert classes_in(volume, tmp_path / "m_10.mha", tmp_path / "table.csv") == {1: "cell"}
    for label in (3, 7):
        write_legend(tmp_path / f"m_{label}.tsv", Legend().naming(1, "older"))
    assert cli.main(["segment", str(volume), "--clicks", str(write_clicks(tmp_path)), "--out", str(out), "--each"]) == 0
    assert classes_in(volume, tmp_path / "m_3.mha", tmp_path / "table.csv") == {1: ""}


def test_another_table_in_the_place_of_the_names_is_told_before_the_work(disks, volume, tmp_path, capsys):
    named_session(volume, tmp_path / "work")
    out, other = tmp_path / "labels.nii.gz", tmp_path / "labels.tsv"
    other.write_text("subject\tage\n1\t70\n")
    assert "which is something else" in refused(capsys, "segment", volume, "--clicks", tmp_path / "work", "--out", out)
    assert not out.exists()
    assert cli.main(["segment", str(volume), "--clicks", str(write_clicks(tmp_path)), "--out", str(out)]) == 0  # which names nothing
    assert other.read_text() == "subject\tage\n1\t70\n"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is not JSON"),
        ("[]", "holds no list of clicks"),
        ('{"clicks": []}', "holds no list of clicks"),
        ('{"clicks": [3]}', "click 1 of .* is 3; expected"),
        ('{"clicks": [{"voxel": [1, 2, 3], "positive": "yes"}]}', 'click 1 of .* "yes"'),
        ('{"clicks": [{"voxel": [1, 2, 3], "object": "a"}]}', "click 1 of .*expected"),
        ('{"clicks": [{"voxel": [1, 2, 3], "object": 0}]}', "click 1 of clicks.json: label 0 arrived; expected a whole number from 1"),
        (
            '{"clicks": [{"voxel": [1, 2, 3]}, {"voxel": [1, 2, 3], "object": 4294967296}]}',
            "click 2 of clicks.json: label 4294967296 arrived",
        ),
        ('{"clicks": [{"voxel": [1, 2]}]}', "a 2D click"),
        ('{"clicks": ' + 9999 * "[" + 9999 * "]" + "}", "is not JSON"),
        ('{"clicks": [{"voxel": [1, 2, 1' + 400 * "0" + "]}]}", "click 1 of clicks.json: a click at .* inside the image"),
        ('{"clicks": [{"voxel": [1, 2, 3], "object": 1' + 400 * "0" + "}]}", "click 1 of clicks.json: label 10*0 arrived"),
        ('{"clicks": [{"voxel": [1, 2, 3], "axis": 1' + 400 * "0" + "}]}", "click 1 of clicks.json: .* across axis 10*0"),
        ('{"clicks": [{"voxel": [1, 2, NaN]}]}', "click 1 of clicks.json: a click at .* arrived; expected 2 or 3 whole"),
        ('{"clicks": [{"voxel": [1, 2, true]}]}', "click 1 of clicks.json: a click at .* arrived; expected 2 or 3 whole"),
        ('{"clicks": [{"voxel": [1, 2, 3], "object": true}]}', "click 1 of clicks.json: label True arrived"),
        ('{"clicks": [{"voxel": [1, 2, 3], "object": NaN}]}', "click 1 of .*NaN}; expected"),
        ('{"clicks": [{"voxel": [1, 2, 3], "axis": true}]}', "click 1 of clicks.json: .* across axis True"),
        ('{"clicks": [{"voxel": [1, 2.5, 3]}]}', "click 1 of clicks.json: a click at"),
        ('{"clicks": [{"voxel": [1, 2, 3]}, {"voxel": [99, 2, 3]}]}', "click 2 of clicks.json: a click at .* inside the image"),
        ('{"clicks": [{"voxel": [1, 2, 3]}, {"voxel": [1, 2, 3], "axis": 3}]}', "click 2 of clicks.json: .* across axis 3"),
        (
            '{"clicks": [{"voxel": [1, 2, 3], "positve": false}]}',
            "click 1 of .* says 'positve', which is not known; expected voxel, positive",
        ),
    ],
)
def test_segment_tells_what_is_wrong_with_the_clicks(disks, volume, tmp_path, capsys, content, sentence):
    path = tmp_path / "clicks.json"
    path.write_text(content)
    assert re.search(sentence, refused(capsys, "segment", volume, "--clicks", path, "--out", tmp_path / "out.nii.gz"))
    assert not (tmp_path / "out.nii.gz").exists()


def test_a_click_file_may_begin_with_a_byte_order_mark(disks, volume, tmp_path):
    path = write_clicks(tmp_path)
    path.write_text(path.read_text("utf-8"), "utf-8-sig")
    assert cli.main(["segment", str(volume), "--clicks", str(path), "--out", str(tmp_path / "out.nii.gz")]) == 0


@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        ("labels.xyz", "extension is not known"),
        ("nowhere/labels.nii.gz", "folder does not exist"),
        ("labels.png", "cannot hold a volume"),
        ("scan.nii.gz", "is the image itself"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_work_and_the_image_is_never_overwritten(
    disks, volume, tmp_path, capsys, monkeypatch, out, sentence
):
    before = volume.read_bytes()
    clicks, labels = write_clicks(tmp_path), tmp_path / "given.nii.gz"
    files.write(labels, np.ones(files.read(volume).shape, np.uint8), like=files.read(volume))
    monkeypatch.setattr(assembly, "open_session", lambda *_, **__: pytest.fail("the work was begun"))
    for command in (("segment", volume, "--clicks", clicks), ("propagate", volume, "--labels", labels)):
        assert sentence in refused(capsys, *command, "--out", tmp_path / out)
    assert volume.read_bytes() == before


def test_of_a_series_a_time_point_is_segmented_and_measured(disks, tmp_path, capsys):
    values = np.random.default_rng(0).integers(0, 255, (30, 24, 8, 3), dtype=np.uint8)
    path, out, table = tmp_path / "series.nii.gz", tmp_path / "labels.nii.gz", tmp_path / "table.csv"
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), path)
    clicks = write_clicks(tmp_path)
    assert "3 time points" in refused(capsys, "segment", path, "--clicks", clicks, "--out", out)
    assert cli.main(["segment", str(path), "--clicks", str(clicks), "--out", str(out), "--time", "2"]) == 0
    assert cli.main(["measure", str(path), str(out), "--out", str(table), "--time", "2"]) == 0
    labels = files.read_labels(out)
    with table.open() as file:
        first = next(csv.DictReader(file))
    assert float(first["mean_intensity"]) == pytest.approx(values[..., 2].T[labels == int(first["label"])].mean())


def test_labels_of_several_time_points_are_refused_whatever_time_was_asked_for(tmp_path, capsys):
    values = np.random.default_rng(0).integers(0, 3, (6, 5, 4, 3), dtype=np.uint8)
    for name in ("series.nii.gz", "labels4d.nii.gz"):
        nibabel.save(nibabel.Nifti1Image(values, AFFINE), tmp_path / name)
    command = ("measure", tmp_path / "series.nii.gz", tmp_path / "labels4d.nii.gz", "--time", "1", "--out", tmp_path / "t.csv")
    assert refused(capsys, *command).endswith(
        "'labels4d.nii.gz' has 3 time points; expected a label map of one time point, in a file of its own"
    )


@pytest.mark.parametrize("apart", [False, True])
def test_measure_pairs_a_time_point_with_its_own_labels(tmp_path, capsys, apart):
    values = np.random.default_rng(0).integers(0, 255, (6, 5, 4, 3), dtype=np.uint8)
    images, table = tmp_path / "images", tmp_path / "table.csv"
    images.mkdir()
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), images / "scan.nii.gz")
    folder = tmp_path / "labels" if apart else images
    folder.mkdir(exist_ok=True)
    image = files.read(images / "scan.nii.gz", time=1)
    for time in (1, 2):
        files.write(folder / files.labels_path(image, time=time).name, np.full(image.shape, time), like=image)
    for time in (1, 2):
        assert cli.main(["measure", str(images), str(folder), "--time", str(time), "--out", str(table)]) == 0
        (row,) = rows_of(table)
        assert (row["case"], row["labels"], row["label"]) == ("scan", f"scan_t{time}_labels.nii.gz", str(time))
        assert float(row["mean_intensity"]) == pytest.approx(values[..., time].mean())
        assert "left out" not in capsys.readouterr().out
    assert "has a label file in" in refused(capsys, "measure", images, folder, "--time", "0", "--out", table)
    files.write(folder / "scan_labels.nii.gz", np.full(image.shape, 7), like=image)
    for time, label in ((0, "7"), (1, "1")):
        assert cli.main(["measure", str(images), str(folder), "--time", str(time), "--out", str(table)]) == 0
        assert [row["label"] for row in rows_of(table)] == [label]


def test_clicks_that_the_image_cannot_take_teach_the_study_nothing(disks, disk, volume, tmp_path, capsys):
    out = tmp_path / "out.nii.gz"
    clicks = write_clicks(tmp_path, [*CLICKS, {"voxel": [900, 1, 1], "object": 8}])
    assert "click 4 of clicks.json" in refused(capsys, "segment", volume, "--clicks", clicks, "--out", out, "--cohort", "mri study")
    assert not cohorts()
    assert not out.exists()


def test_segment_tells_which_file_is_missing(disks, volume, tmp_path, capsys):
    clicks = write_clicks(tmp_path)
    assert "nothing.nii" in refused(capsys, "segment", tmp_path / "nothing.nii", "--clicks", clicks, "--out", tmp_path / "o.nii")
    assert "nothing.json" in refused(capsys, "segment", volume, "--clicks", tmp_path / "nothing.json", "--out", tmp_path / "o.nii")
    assert "o.xyz" in refused(capsys, "segment", volume, "--clicks", clicks, "--out", tmp_path / "o.xyz")
    assert "policy" in refused(capsys, "segment", volume, "--clicks", clicks, "--out", tmp_path / "o.nii", "--policy", "x")


# --- benchmark ---


def test_benchmark_makes_a_row_of_every_combination(disks, disks_set, tmp_path, capsys):
    rows_path, tables_path = tmp_path / "rows.json", tmp_path / "tables.md"
    arguments = ["--policy", "none,mi+pi", "--robot", "centre,random", "--order", "sorted,1", "--max-clicks", "3", "--limit", "4"]
    arguments += ["--targets", "0.5,0.7", "--json", rows_path, "--markdown", tables_path, "--device", "cpu", "--threads", "1"]
    assert cli.main(["benchmark", str(disks_set), *map(str, arguments)]) == 0
    content = json.loads(rows_path.read_text())
    keys = [(row["robot"], row["order"], row["policy"]) for row in content["rows"]]
    assert keys == [(r, o, p) for r in ("centre", "random") for o in ("sorted", "1") for p in ("none", "mi+pi")]
    assert all((row["n_objects"], set(row["noc"]), set(row["iou_at"])) == (4, {"0.50", "0.70"}, {"1", "3"}) for row in content["rows"])
    assert (content["machine"]["threads"], content["machine"]["device"]) == (1, "cpu")
    assert capsys.readouterr().out == tables_path.read_text()
    assert tables_path.read_text().count("| disks |") == 16


def test_benchmark_marks_the_rows_of_a_user_who_tells_classes(disks, disks_set, tmp_path):
    path = tmp_path / "rows.json"
    command = ["benchmark", str(disks_set), "--policy", "none,mi+pi", "--max-clicks", "1", "--limit", "2", "--json", str(path), "--told"]
    assert cli.main([*command, "--device", "cpu"]) == 0
    assert [row["policy"] for row in json.loads(path.read_text())["rows"]] == ["none, classes told", "mi+pi, classes told"]


def test_benchmark_keeps_the_rows_that_were_there_when_it_was_stopped(disks, disks_set, tmp_path, monkeypatch, capsys):
    made = assembly.make_policy

    def stopping(name):
        policy = made(name)
        if name == "mi+pi" and path.exists():
            raise KeyboardInterrupt
        return policy

    path = tmp_path / "rows.json"
    monkeypatch.setattr(assembly, "make_policy", stopping)
    assert cli.main(["benchmark", str(disks_set), "--policy", "none,mi+pi", "--max-clicks", "2", "--json", str(path)]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert [row["policy"] for row in json.loads(path.read_text())["rows"]] == ["none"]


@pytest.fixture
def weights_here(tmp_path, monkeypatch):
    """Files of these names in the working folder."""
    monkeypatch.chdir(tmp_path)
    for name in "abxy":
        (tmp_path / f"{name}.safetensors").touch()


def test_benchmark_hands_weights_and_network_on(disks, disks_set, weights_here):
    cli.main(["benchmark", str(disks_set), "--max-clicks", "1", "--network", "unet", "--device", "cpu"])
    cli.main(["benchmark", str(disks_set), "--max-clicks", "1", "--weights", "x.safetensors", "--device", "cpu"])
    cli.main(["benchmark", str(disks_set), "--max-clicks", "1", "--weights", "unet=y.safetensors", "--device", "cpu"])
    asked = [(one["network"], str(one["weights"])) for one in disks]
    assert asked == [("unet", "None"), (None, "x.safetensors"), ("unet", "y.safetensors")]


def test_benchmark_crosses_networks_and_policies(disks, disks_set, weights_here, monkeypatch, tmp_path):
    monkeypatch.setattr(assembly, "find_weights", lambda network: tmp_path)
    path = tmp_path / "rows.json"
    command = ["benchmark", str(disks_set), "--max-clicks", "1", "--network", "unet,cdnet", "--policy", "none,mi+pi"]
    cli.main([*command, "--weights", "cdnet=a.safetensors", "--json", str(path), "--device", "cpu"])
    assert [(one["network"], str(one["weights"])) for one in disks] == [("unet", "None"), ("cdnet", "a.safetensors")]
    assert [row["policy"] for row in json.loads(path.read_text())["rows"]] == ["none", "mi+pi", "none", "mi+pi"]


def test_benchmark_tells_how_to_get_weights_that_are_missing(disks, disks_set, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(assembly, "DEFAULT_WEIGHTS", tmp_path / "unet.safetensors")
    said = refused(capsys, "benchmark", disks_set, "--network", "unet")
    assert "'unet'" in said
    assert "apprentice train recipes/default.toml --data DIR --out runs/unet.safetensors" in said
    assert disks == []


def test_benchmark_refuses_weights_of_no_network_that_is_compared(disks, disks_set, capsys):
    assert "NAME=FILE" in refused(capsys, "benchmark", disks_set, "--network", "unet", "--weights", "a.safetensors")
    assert "NAME=FILE" in refused(capsys, "benchmark", disks_set, "--weights", "a.safetensors", "--weights", "b.safetensors")
    assert "cdnet" in refused(capsys, "benchmark", disks_set, "--network", "unet", "--weights", "cdnet=a.safetensors")
    assert "'vnet'" in refused(capsys, "benchmark", disks_set, "--network", "vnet")


def test_benchmark_compares_several_weights_of_one_network(disks, disks_set, weights_here, tmp_path):
    path = tmp_path / "rows.json"
    command = ["benchmark", str(disks_set), "--max-clicks", "1", "--json", str(path), "--device", "cpu"]
    cli.main([*command, "--weights", "cdnet=a.safetensors", "--weights", "cdnet-plain=b.safetensors"])
    assert [(one["network"], str(one["weights"])) for one in disks] == [("cdnet", "a.safetensors"), (None, "b.safetensors")]
    assert [row["network"] for row in json.loads(path.read_text())["rows"]] == ["cdnet", "cdnet-plain"]


def test_benchmark_says_what_a_click_costs_a_network(disks_set, tmp_path, capsys, monkeypatch):
    import torch

    from napari_apprentice import segmenter
    from napari_apprentice.networks import build
    from napari_apprentice.weights import save_weights

    torch.manual_seed(0)
    weights = save_weights(build("unet", {"widths": [8, 8, 8], "blocks": [1, 1, 1], "head_width": 4}), tmp_path / "tiny.safetensors")
    path = tmp_path / "rows.json"
    command = ["benchmark", str(disks_set), "--max-clicks", "2", "--limit", "1", "--json", str(path), "--device", "cpu"]
    assert cli.main([*command, "--weights", f"tiny={weights}", "--weights", f"again={weights}", "--threads", "1"]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert [row["network"] for row in rows] == ["tiny", "again"]
    assert rows[0]["cost"] == rows[1]["cost"]
    assert set(rows[0]["cost"]) == {"parameters", "gflops", "memory_mib"}
    assert all(value > 0 for value in rows[0]["cost"].values())
    assert "GFLOPs" in capsys.readouterr().out
    seen = []
    monkeypatch.setattr(segmenter, "pixel_diffusion", lambda logits, *rest: seen.append(0) or torch.zeros_like(logits))
    assert cli.main([*command, "--weights", str(weights), "--threads", "1"]) == 0
    assert seen == []
    assert cli.main([*command, "--weights", str(weights), "--zoom", "diffusion=5,mirror=true", "--threads", "1"]) == 0
    assert [row["network"] for row in json.loads(path.read_text())["rows"]] == ["unet (diffusion=5,mirror=true)"]
    assert seen


@pytest.mark.parametrize("name", ["size", "first_size", "late_size"])
def test_benchmark_refuses_sizes_that_the_network_cannot_look_at(disks_set, tmp_path, capsys, name):
    from napari_apprentice.networks import build
    from napari_apprentice.weights import save_weights

    weights = save_weights(build("unet", {"widths": [8, 8, 8], "blocks": [1, 1, 1], "head_width": 4}), tmp_path / "tiny.safetensors")
    command = ("benchmark", disks_set, "--weights", weights, "--threads", "1", "--device", "cpu", "--json", tmp_path / "rows.json")
    said = refused(capsys, *command, "--zoom", "", "--zoom", f"{name}=66")
    assert f"--zoom {name}=66 arrived; expected a multiple of 8 for the network 'unet'" in said
    assert not (tmp_path / "rows.json").exists()


@pytest.mark.parametrize("option", ["--json", "--markdown"])
def test_benchmark_tells_what_it_could_not_do_before_it_measures(disks_set, tmp_path, capsys, monkeypatch, option):
    monkeypatch.setattr(assembly, "load_segmenter", lambda *_, **__: pytest.fail("it began to measure"))
    (tmp_path / "file").touch()
    assert f"{tmp_path} is a folder" in refused(capsys, "benchmark", disks_set, option, tmp_path)
    assert "cannot be written (Not a directory)" in refused(capsys, "benchmark", disks_set, option, tmp_path / "file" / "rows")
    assert "robot named 'left'" in refused(capsys, "benchmark", disks_set, "--robot", "centre,left")
    weights = ("--weights", f"a={tmp_path / 'file'}", "--weights", f"b={tmp_path / 'none'}")
    assert f"weights {tmp_path / 'none'} are not there" in refused(capsys, "benchmark", disks_set, *weights)


@pytest.mark.parametrize(
    ("option", "name"), [("--json", "scan.tif"), ("--json", "journal.jsonl"), ("--markdown", "scan.tif"), ("--markdown", "clicks.json")]
)
def test_rows_and_tables_of_a_benchmark_take_the_place_of_nothing_that_is_read(disks, disks_set, tmp_path, capsys, option, name):
    (tmp_path / name).write_text("earlier")
    assert f"{name} was asked for, which is named as images" in refused(capsys, "benchmark", disks_set, option, tmp_path / name)
    assert (tmp_path / name).read_text() == "earlier"


def test_rows_and_tables_of_a_benchmark_are_two_files(disks, disks_set, tmp_path, capsys):
    both = tmp_path / "rows.md"
    assert "arrived for several files" in refused(capsys, "benchmark", disks_set, "--json", both, "--markdown", both)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_table_may_go_into_a_pipe_beside_which_nothing_can_be_written(volume, tmp_path, monkeypatch):
    labels, pipe, read = write_objects_of(volume, tmp_path), tmp_path / "pipe", []
    os.mkfifo(pipe)
    monkeypatch.setattr(_arguments, "TemporaryFile", lambda dir: pytest.fail("it tried to write beside the pipe"))
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    assert cli.main(["measure", str(volume), str(labels), "--out", str(pipe)]) == 0
    reader.join(timeout=20)
    assert read[0].startswith("case,labels,label,")


def test_benchmark_prints_the_table_that_it_cannot_write(disks, disks_set, tmp_path, monkeypatch, capsys):
    def full(path, text):
        raise WriteError(f"{path} cannot be written (No space left on device); expected free space and permission")

    monkeypatch.setattr(texts, "write_text", full)
    assert cli.main(["benchmark", str(disks_set), "--max-clicks", "1", "--markdown", str(tmp_path / "t.md"), "--device", "cpu"]) == 2
    out, err = capsys.readouterr()
    assert "| disks |" in out
    assert "No space left" in err


def test_benchmark_tells_what_it_cannot_use(disks, disks_set, tmp_path, capsys):
    (tmp_path / "file").touch()
    for name in ("nowhere", "file"):
        assert f"{name} arrived as a data set; expected a folder" in refused(capsys, "benchmark", tmp_path / name)
    assert "targets 2.0, 0.5 arrived; expected" in refused(capsys, "benchmark", disks_set, "--targets", "2,0.5")
    assert "robot" in refused(capsys, "benchmark", disks_set, "--robot", "left")
    assert "policy" in refused(capsys, "benchmark", disks_set, "--policy", "none,never")
    assert "expected NAME=VALUE" in refused(capsys, "benchmark", disks_set, "--zoom", "nearness=1")
    for value, expected in (
        ("diffusion=-5", "a finite number from 0"),
        ("diffusion=nan", "a finite number from 0"),
        ("wider=1.8+-1", "finite numbers from 0"),
        ("size=-1", "a finite number from 1"),
        ("size=0", "a finite number from 1"),
        ("first_size=0", "a finite number from 1"),
        ("late_size=0", "a finite number from 1"),
        ("size=nan", "NAME=VALUE with one of size (int)"),
        ("smallest_side_px=0", "a finite number from 1"),
        ("first_steps=1", "a finite number above 1"),
        ("first_steps=nan", "a finite number above 1"),
    ):
        assert f"--zoom {value} arrived; expected {expected}" in refused(capsys, "benchmark", disks_set, "--zoom", value)
    assert "mirror=maybe" in refused(capsys, "benchmark", disks_set, "--zoom", "mirror=maybe")
    assert "no case" in refused(capsys, "benchmark", disks_set, "--cases", "z*")
    assert "target" in refused(capsys, "benchmark", disks_set, "--target", "lesion")


@pytest.mark.parametrize(
    "arguments", [["--order", "random"], ["--order", "-1"], ["--seed", "-1"], ["--targets", "high"], ["--device", "abacus"]]
)
def test_benchmark_refuses_arguments_that_mean_nothing(arguments):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["benchmark", "set", *arguments])
    assert stopped.value.code == 2


@pytest.mark.parametrize("number", ["0", "-3", "half", ""])
@pytest.mark.parametrize(
    "arguments",
    [
        *(["benchmark", "set", option] for option in ("--jobs", "--threads", "--limit", "--max-clicks")),
        ["train", "r.toml", "--out", "o.safetensors", "--threads"],
        *(["cohort", "run", "project", option] for option in ("--jobs", "--threads")),
    ],
    ids=lambda arguments: arguments[0] + arguments[-1],
)
def test_how_many_is_a_whole_number_from_one(arguments, number, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([*arguments[:-1], f"{arguments[-1]}={number}"])
    assert stopped.value.code == 2
    assert f"argument {arguments[-1]}: {number!r} arrived; expected a whole number from 1" in capsys.readouterr().err


def test_threads_are_not_more_than_a_process_can_have(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["benchmark", "set", "--threads", "99999"])
    assert stopped.value.code == 2
    assert "'99999' arrived; expected a whole number from 1 to 1024" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "number", "least"), [("--label", "0", 1), ("--label", "-1", 1), ("--time", "-1", 0), ("--time", "x", 0)]
)
def test_objects_are_numbered_from_one_and_times_from_zero(option, number, least, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["propagate", "scan.nii.gz", "--labels", "in.nii.gz", "--out", "out.nii.gz", f"{option}={number}"])
    assert stopped.value.code == 2
    assert f"argument {option}: {number!r} arrived; expected a whole number from {least}" in capsys.readouterr().err


# --- train, info ---


def test_train_hands_everything_on(monkeypatch, tmp_path, capsys):
    from napari_apprentice import training

    calls = []
    monkeypatch.setattr(training, "train", lambda *args, **kwargs: calls.append(([str(a) for a in args], kwargs)))
    assert cli.main(["train", "r.toml", "--data", "d", "--out", "o.safetensors", "--resume", "--device", "cpu", "--threads", "3"]) == 0
    assert calls == [(["r.toml", "d", "o.safetensors"], {"resume": True, "device": "cpu", "threads": 3})]
    assert "o.safetensors" in capsys.readouterr().out


def test_train_tells_that_the_recipe_is_missing(tmp_path, capsys):
    assert "nothing.toml" in refused(capsys, "train", tmp_path / "nothing.toml", "--data", tmp_path, "--out", tmp_path / "w.safetensors")


def test_train_tells_that_its_weights_cannot_be_written_before_it_trains(monkeypatch, tmp_path, capsys):
    from napari_apprentice import training

    monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("it began to train"))
    (tmp_path / "w.safetensors").mkdir()
    assert "is a folder" in refused(capsys, "train", "r.toml", "--out", tmp_path / "w.safetensors")


@pytest.mark.parametrize("arguments", [["train", "r.toml", "--out"], ["cohort", "export", "lesions"]])
@pytest.mark.parametrize("name", ["model.txt", "model"])
def test_the_file_of_a_model_is_called_what_it_is(arguments, name, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([*arguments, name])
    assert stopped.value.code == 2
    assert f"{name!r} arrived; expected a file whose name ends with .safetensors" in capsys.readouterr().err


def test_a_project_is_not_made_with_weights_that_cannot_be_used(volume, tmp_path, capsys):
    new = ("cohort", "new", tmp_path / "project", volume, "--study", "s", "--weights")
    assert "none.safetensors cannot be read as weights" in refused(capsys, *new, tmp_path / "none.safetensors")
    assert f"{tmp_path} is a folder" in refused(capsys, *new, tmp_path)
    assert not (tmp_path / "project").exists()


@pytest.mark.parametrize(
    "given", [["--policy", "none"], ["--axis", "0"], ["--no-propagate"], ["--name", "1=disc"], ["--weights", "w.safetensors"]], ids=str
)
def test_a_run_does_not_pass_over_settings_that_a_project_has_already(disks, volume, tmp_path, capsys, given):
    project = tmp_path / "project"
    assert cli.main(["cohort", "new", str(project), str(volume), "--study", "s"]) == 0
    capsys.readouterr()
    told = f"{given[0]} arrived for a project that there is already; expected its settings in project.toml"
    assert told in refused(capsys, "cohort", "run", project, *given)
    assert told in refused(capsys, "cohort", "run", volume, "--out", project, *given)
    assert "the study 't' arrived for a project of 's'" in refused(capsys, "cohort", "run", project, "--study", "t")


def test_info_prints_the_facts(disks, capsys):
    assert cli.main(["info"]) == 0
    facts = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert facts == {"network": "disks", "parameters": "1", "digest": "disks", "device": "cpu"}


def test_info_tells_that_a_file_holds_no_weights(tmp_path, capsys):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"not weights")
    assert "w.safetensors" in refused(capsys, "info", path)


def test_weights_of_another_network_are_told(monkeypatch, capsys):
    def load(*_, **__):
        raise WeightsError("these are weights of a teapot; expected those of a network")

    monkeypatch.setattr(assembly, "load_segmenter", load)
    assert refused(capsys, "info", "x") == "apprentice: these are weights of a teapot; expected those of a network"


# --- demo ---


@pytest.fixture
def small_samples(monkeypatch, tmp_path):
    """A volume and a colour picture with truths, in place of the ones that ship."""
    folder = tmp_path / "samples"
    folder.mkdir()
    rng = np.random.default_rng(1)
    zz, yy, xx = np.mgrid[:6, :40, :40]
    truth = np.where((yy - 15) ** 2 + (xx - 15) ** 2 <= (6 + zz) ** 2, 2, 0).astype(np.uint8)
    truth[:, 30:38, 30:38] = 5
    affine = np.diag([1.0, 1.0, 2.5, 1.0])
    nibabel.save(nibabel.Nifti1Image(rng.integers(0, 255, (40, 40, 6), dtype=np.uint8), affine), folder / "head.nii.gz")
    nibabel.save(nibabel.Nifti1Image(truth.T, affine), folder / "head_labels.nii.gz")
    Picture.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(folder / "photo.png")
    Picture.fromarray(truth[0]).save(folder / "photo_labels.png")
    pairs = tuple((folder / f"{name}{end}", folder / f"{name}_labels{end}") for name, end in (("head", ".nii.gz"), ("photo", ".png")))
    monkeypatch.setattr(demo, "samples", lambda: pairs)
    return pairs


def test_demo_without_a_screen_says_so_and_writes_everything(disks, small_samples, tmp_path, monkeypatch, capsys):
    for variable in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(demo, "open_window", lambda: pytest.fail("opened a window"))
    out = tmp_path / "out"
    assert cli.main(["demo", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "no screen" in said
    for name in ("head_labels.nii.gz", "photo_labels.png", "clicks.csv"):
        assert str(out / name) in said
    written = nibabel.load(out / "head_labels.nii.gz")
    assert written.shape == (40, 40, 6)
    np.testing.assert_array_equal(written.affine, nibabel.load(small_samples[0][0]).affine)


def test_demo_table_tells_the_truth(disks, small_samples, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "SLICES_PER_OBJECT", 3)
    out = tmp_path / "out"
    assert cli.main(["demo", "--headless", "--out", str(out)]) == 0
    with (out / "clicks.csv").open() as file:
        lines = list(csv.DictReader(file))
    slices = [(one["sample"], one["object"], one["slice"]) for one in lines]
    head = [("head", "2", i) for i in "135"] + [("head", "5", i) for i in "025"]  # the larger object first, not where it is small
    assert slices == [*head, ("photo", "2", "0"), ("photo", "5", "0")]
    truth, labels = (files.read_labels(path) for path in (small_samples[0][1], out / "head_labels.nii.gz"))
    for line in (one for one in lines if one["sample"] == "head"):
        goal, mask = (volume[int(line["slice"])] == int(line["object"]) for volume in (truth, labels))
        assert (goal & mask).sum() / (goal | mask).sum() == pytest.approx(float(line["iou"]))
        assert 1 <= int(line["clicks"]) <= demo.MAX_CLICKS
    said = capsys.readouterr().out
    assert f"{len(lines)} slices" in said


def test_demo_learns_from_every_slice_it_accepts(disks, small_samples, tmp_path, monkeypatch):
    lessons = []
    monkeypatch.setattr(FakePolicy, "on_accept", lambda self, segmenter, lesson: lessons.append(lesson) or LearningReport())
    results = demo.run_headless(tmp_path)
    assert [len(lesson.clicks) for lesson in lessons] == [one.clicks for one in results.slices]


def test_demo_pictures_show_image_mask_truth_and_clicks(disks, small_samples, tmp_path):
    out = tmp_path / "out"
    results = demo.run_headless(out)
    assert len(list(out.glob("*_object*_slice*.png"))) == len(results.slices)
    for one in results.slices:
        with Picture.open(out / f"{one.sample}_object{one.object}_slice{one.slice:03d}.png") as picture:
            pixels = np.asarray(picture.convert("RGB"))
        for colour in ((80, 220, 255), (60, 220, 80)):  # outline of the truth, positive click
            assert (pixels == colour).all(axis=2).any()


def test_demo_opens_a_window_where_there_is_a_screen(monkeypatch, tmp_path, capsys):
    opened = []
    monkeypatch.setattr(demo, "why_no_window", lambda: "")
    monkeypatch.setattr(demo, "open_window", lambda: opened.append(1))
    assert cli.main(["demo", "--out", str(tmp_path / "out")]) == 0
    assert opened == [1]
    assert not (tmp_path / "out").exists()


def test_the_window_shows_an_anisotropic_head_that_is_not_saved_into_nibabel(monkeypatch):
    from napari_apprentice._napari import launch

    shown = []
    monkeypatch.setattr(launch, "launch", lambda image, **_: shown.append(image))
    demo.open_window()
    (image,) = shown
    assert isinstance(image, Image)
    assert image.path is None
    assert image.ndim == 3
    assert image.units == "mm"
    assert len(set(np.round(image.spacing, 3))) > 1


def test_without_napari_there_is_no_window(monkeypatch):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    assert "not installed" in demo.why_no_window()


def test_demo_tells_that_it_cannot_write(disks, small_samples, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(capsys, "demo", "--headless", "--out", tmp_path / "file" / "out")


@pytest.mark.slow
def test_demo_with_the_shipped_network_segments_the_samples(tmp_path, capsys):
    assert cli.main(["demo", "--headless", "--out", str(tmp_path)]) == 0
    for source, _ in demo.samples():
        image, labels = files.read(source), files.read(next(tmp_path.glob(f"{files.read(source).name}_labels.*")))
        assert labels.shape == image.shape
        np.testing.assert_allclose(labels.affine, image.affine)
    ious = [float(line["iou"]) for line in csv.DictReader((tmp_path / "clicks.csv").open())]
    assert np.mean(ious) > 0.5


# --- propagate ---


def test_propagate_carries_labels_and_keeps_what_was_given(disks, volume, tmp_path, capsys):
    image = files.read(volume)
    given = np.zeros(image.shape, np.uint8)
    given[3, 6:14, 6:14] = 1
    given[3, 16:22, 18:26] = 2
    given[5, 17:23, 18:26] = 2
    source, out = tmp_path / "given.nii.gz", tmp_path / "labels.nii.gz"
    files.write(source, given, like=image)
    assert cli.main(["propagate", str(volume), "--labels", str(source), "--out", str(out), "--device", "cpu"]) == 0
    labels = files.read_labels(out)
    np.testing.assert_array_equal(labels[given != 0], given[given != 0])
    assert (labels[4] == 2).any()
    np.testing.assert_array_equal(nibabel.load(out).affine, nibabel.load(volume).affine)
    told = capsys.readouterr().out
    assert "Object 1: " in told
    assert "Object 2: " in told
    assert asked_for(disks) == "cpu"

    assert cli.main(["propagate", str(volume), "--labels", str(source), "--out", str(out), "--label", "2"]) == 0
    only = files.read_labels(out)
    np.testing.assert_array_equal(only == 1, given == 1)
    np.testing.assert_array_equal(only[3], given[3])


def test_propagate_carries_the_names_that_lie_beside_the_labels(disks, volume, tmp_path, capsys):
    image = files.read(volume)
    given = np.zeros(image.shape, np.uint8)
    given[3, 6:14, 6:14], given[3, 16:22, 18:26] = 1, 2
    source, out = files.write(tmp_path / "given.nii.gz", given, like=image), tmp_path / "labels.nii.gz"
    command = ["propagate", str(volume), "--labels", str(source), "--out", str(out)]
    write_legend(legend_path(source), Legend().naming(2, "cup"))
    write_legend(legend_path(out), Legend().naming(1, "older"))
    assert cli.main(command) == 0
    assert classes_in(volume, out, tmp_path / "table.csv") == {1: "", 2: "cup"}
    legend_path(source).write_text("subject\tage\n1\t70\n")
    assert cli.main(command) == 0
    assert f"apprentice: {legend_path(source)} has the columns subject, age" in capsys.readouterr().err
    assert classes_in(volume, out, tmp_path / "table.csv") == {1: "", 2: ""}


def test_propagate_refuses_labels_of_another_place(disks, volume, tmp_path, capsys):
    image = files.read(volume)
    moved = np.array(image.affine)
    moved[0, 3] += 10
    source = files.write(tmp_path / "given.nii.gz", np.ones(image.shape, np.uint8), like=Image(image.data, moved, image.units))
    assert "voxels away" in refused(capsys, "propagate", volume, "--labels", source, "--out", tmp_path / "out.nii.gz")


def asked_for(disks):
    return disks[-1]["device"]


def test_propagate_refuses_labels_without_an_object(disks, volume, tmp_path, capsys):
    image, out = files.read(volume), tmp_path / "labels.nii.gz"
    source = files.write(tmp_path / "given.nii.gz", np.zeros(image.shape, np.uint8), like=image)
    for more in ((), ("--label", 1)):
        assert "'given.nii.gz' holds no object; expected" in refused(capsys, "propagate", volume, "--labels", source, "--out", out, *more)
    assert not out.exists()


def test_propagate_refuses_an_object_that_is_not_there(disks, volume, tmp_path, capsys):
    source = tmp_path / "given.nii.gz"
    image = files.read(volume)
    files.write(source, np.ones(image.shape, np.uint8), like=image)
    out = tmp_path / "labels.nii.gz"
    assert "object 9 is not in 'given.nii.gz'; expected one of 1" in refused(
        capsys, "propagate", volume, "--labels", source, "--out", out, "--label", "9"
    )
    assert not out.exists()


# --- cohort ---


@pytest.fixture
def disk(tmp_path, monkeypatch):
    monkeypatch.setenv("APPRENTICE_HOME", str(tmp_path / "home"))


def teach_cohort(volume, tmp_path, name="mri study"):
    clicks = write_clicks(tmp_path)
    assert cli.main(["segment", str(volume), "--clicks", str(clicks), "--out", str(tmp_path / "out.nii.gz"), "--cohort", name]) == 0


def test_segment_goes_on_with_the_model_of_a_study(disks, disk, volume, tmp_path, capsys):
    teach_cohort(volume, tmp_path)
    (cohort,) = cohorts()
    first = Cohort(cohort.name, cohort.digest, FakeStore()).start().snapshot
    teach_cohort(volume, tmp_path)
    second = Cohort(cohort.name, cohort.digest, FakeStore()).start().snapshot
    assert second.lessons == 2 * first.lessons > 0
    assert "Study mri study" in capsys.readouterr().out


def stopped_at(click, error, monkeypatch):
    """Let sessions raise ``error`` instead of answering ``click``."""
    add = Session.add
    asked = iter(range(1, 100))

    def adding(session, wanted):
        if next(asked) == click:
            raise error
        return add(session, wanted)

    monkeypatch.setattr(Session, "add", adding)


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (WriteError("the disk is full"), 2)])
@pytest.mark.parametrize(("click", "study", "left"), [(3, "em", {3}), (2, "em", None), (3, None, None)])
def test_what_a_study_learnt_from_is_written_also_where_it_was_stopped(
    disks, disk, volume, tmp_path, monkeypatch, capsys, error, code, click, study, left
):
    clicks, out = write_clicks(tmp_path), tmp_path / "out.nii.gz"
    with monkeypatch.context() as patched:
        stopped_at(click, error, patched)
        study_options = ["--cohort", study] if study else []
        assert cli.main(["segment", str(volume), "--clicks", str(clicks), "--out", str(out), *study_options]) == code
    told = capsys.readouterr().out
    if left is None:  # nothing was learnt that the same command would not learn again
        assert not out.exists()
        assert told == ""
    else:
        labels = files.read_labels(out)
        assert set(np.unique(labels)) - {0} == left
        np.testing.assert_array_equal(labels == 3, by_hand(volume) == 3)
        assert f"Stopped after 6 of 9 actions. Labels: {out}" in told


def test_a_study_that_has_learnt_nothing_cannot_be_used_without_teaching_it(disks, disk, volume, tmp_path, capsys):
    clicks, out = write_clicks(tmp_path), tmp_path / "none.nii.gz"
    untaught = ["segment", str(volume), "--clicks", str(clicks), "--out", str(out), "--policy", "none", "--cohort", "em"]
    assert "the study 'em' has learnt nothing" in refused(capsys, *untaught)
    assert not out.exists()
    teach_cohort(volume, tmp_path, "em")
    assert cli.main(untaught) == 0
    assert len(cohorts()) == 1


def test_segment_begins_with_a_file(disks, volume, tmp_path):
    FakeStore().save(DiskWeights(9.0), tmp_path / "model")
    clicks, out = write_clicks(tmp_path), tmp_path / "out.nii.gz"
    sizes = []
    for more in ([], ["--knowledge", str(tmp_path / "model")]):
        assert cli.main(["segment", str(volume), "--clicks", str(clicks), "--out", str(out), "--policy", "none", *more]) == 0
        sizes.append(np.count_nonzero(files.read_labels(out)))
    assert sizes[1] > sizes[0]


def test_cohort_lists_shows_forgets_and_erases(disks, disk, volume, tmp_path, capsys):
    teach_cohort(volume, tmp_path)
    teach_cohort(volume, tmp_path, "em")
    capsys.readouterr()
    assert cli.main(["cohort", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["em", "mri study"]
    assert cli.main(["cohort", "show", "em"]) == 0
    shown = capsys.readouterr().out
    assert "learnt     scan" in shown
    assert re.search(r"IoU@1 \d\.\d\d, untaught \d\.\d\d", shown)
    assert cli.main(["cohort", "forget", "em"]) == 0
    assert "as shipped" in capsys.readouterr().out
    assert Cohort("em", "disks", FakeStore()).start() is None
    assert "there is nothing to forget" in refused(capsys, "cohort", "forget", "em")
    assert cli.main(["cohort", "forget", "em", "--erase"]) == 0
    assert "is deleted" in capsys.readouterr().out
    assert [cohort.name for cohort in cohorts()] == ["mri study"]
    assert refused(capsys, "cohort", "show", "em").endswith("no study called 'em'; expected mri study")


def test_cohort_lists_the_other_studies_beside_a_damaged_one(disks, disk, volume, tmp_path, capsys):
    teach_cohort(volume, tmp_path, "em")
    teach_cohort(volume, tmp_path, "mri")
    (next(cohort for cohort in cohorts() if cohort.name == "em").folder / "000009.json").write_text("{")
    capsys.readouterr()
    assert cli.main(["cohort", "list"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("mri  2 versions")
    assert "000009.json of a study is damaged" in err


def test_cohort_export_hands_everything_on(monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(assembly, "export_cohort", lambda *args, **options: asked.append((args, options)) or args[1])
    assert cli.main(["cohort", "export", "em", str(tmp_path / "x.safetensors"), "--pictures"]) == 0
    assert asked == [(("em", tmp_path / "x.safetensors"), {"weights": None, "pictures": True})]
    assert "x.safetensors" in capsys.readouterr().out


# --- measure ---


def write_objects_of(volume, folder, name="truth.nii.gz"):
    labels = np.zeros((8, 24, 30), np.uint8)
    labels[2:4, 5:10, 5:12], labels[5, 3:9, 14:20] = 3, 7
    return files.write(folder / name, labels, like=files.read(volume))


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_measure_writes_a_row_for_every_object_of_every_label_file(volume, tmp_path, capsys):
    first = write_objects_of(volume, tmp_path)
    second = write_objects_of(volume, tmp_path, "other.mha")
    (tmp_path / "other.tsv").write_text("index\tname\n3\tnucleus\n")
    table = tmp_path / "tables" / "table.csv"
    assert cli.main(["measure", str(volume), str(first), str(second), "--out", str(table)]) == 0
    assert "Objects: 4" in capsys.readouterr().out
    rows = rows_of(table)
    told = [(row["case"], row["labels"], row["label"], row["class"]) for row in rows]
    assert told == [
        ("scan", "truth.nii.gz", "3", ""),
        ("scan", "truth.nii.gz", "7", ""),
        ("scan", "other.mha", "3", "nucleus"),
        ("scan", "other.mha", "7", ""),
    ]
    assert [float(row["volume_mm3"]) for row in rows] == pytest.approx([70 * 0.7, 36 * 0.7] * 2)
    assert "clicks" not in rows[0]


@pytest.mark.parametrize("options", [(), ("--unit", "um"), ("--journal",)])
def test_a_table_without_objects_has_the_columns_of_one_with_some(disks, volume, tmp_path, options):
    image, tables = files.read(volume), []
    if "--journal" in options:
        with Journal.create(tmp_path / "session", image):
            options = (*options, str(tmp_path / "session"))
    for ids in (1, 0):
        labels = files.write(tmp_path / "labels.nii.gz", np.full(image.shape, ids, np.uint8), like=image)
        assert cli.main(["measure", str(volume), str(labels), "--out", str(tmp_path / "table.csv"), *options]) == 0
        tables.append((tmp_path / "table.csv").read_text().splitlines())
    assert tables[1] == tables[0][:1]


def test_measure_tells_what_a_session_cost(disks, volume, tmp_path):
    image = files.read(volume)
    session = Session(image, DiskSegmenter(4.0), FakePolicy(), journal=Journal.create(tmp_path / "session", image))
    session.add(Click((2, 10, 12)))
    session.add(Click((2, 10, 15)))
    session.accept()
    labels = files.write(tmp_path / "labels.nii.gz", np.array(session.labels), like=image)
    table = tmp_path / "table.csv"
    assert cli.main(["measure", str(volume), str(labels), "--journal", str(tmp_path / "session"), "--out", str(table)]) == 0
    (row,) = rows_of(table)
    assert (row["clicks"], row["model_version"]) == ("2", "0")
    assert 0 < float(row["active_s"]) < 20


def test_measure_pairs_two_folders_by_name(volume, tmp_path, capsys):
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    for name in ("b.nii.gz", "a.nii.gz", "unlabelled.nii.gz"):
        (images / name).write_bytes(volume.read_bytes())
    write_objects_of(volume, labels, "a.nii.gz")
    write_objects_of(volume, labels, "b_labels.mha")
    table = tmp_path / "cohort.csv"
    assert cli.main(["measure", str(images), str(labels), "--out", str(table)]) == 0
    assert [(row["case"], row["label"]) for row in rows_of(table)] == [("a", "3"), ("a", "7"), ("b", "3"), ("b", "7")]
    assert "left out: 1" in capsys.readouterr().out


def test_measure_tells_images_from_labels_that_lie_beside_them(volume, tmp_path, capsys):
    images, apart, table = tmp_path / "images", tmp_path / "apart", tmp_path / "table.csv"
    for folder in (images, apart):
        folder.mkdir()
    for name in ("scan.nii.gz", "unlabelled.nii.gz"):
        (images / name).write_bytes(volume.read_bytes())
    write_objects_of(volume, images, "scan_labels.nii.gz")
    write_objects_of(volume, apart, "scan.mha")
    measured = []
    for labels in (images, apart):
        assert cli.main(["measure", str(images), str(labels), "--out", str(table)]) == 0
        assert "left out: 1" in capsys.readouterr().out
        assert {row["case"] for row in rows_of(table)} == {"scan"}
        measured.append([{key: value for key, value in row.items() if key != "labels"} for row in rows_of(table)])
    assert measured[0] == measured[1]


@pytest.mark.parametrize(
    ("folder", "name", "words"), [("images", "scan.mha", "one image"), ("labels", "scan_labels.mha", "one label file")]
)
def test_measure_refuses_two_files_of_one_case(volume, tmp_path, capsys, folder, name, words):
    images, labels = tmp_path / "images", tmp_path / "labels"
    for each in (images, labels):
        each.mkdir()
    (images / "scan.nii.gz").write_bytes(volume.read_bytes())
    write_objects_of(volume, labels, "scan_labels.nii.gz")
    write_objects_of(volume, tmp_path / folder, name)
    assert f"are of one case; expected {words} for each" in refused(capsys, "measure", images, labels, "--out", tmp_path / "table.csv")


def test_measure_has_one_unit_for_all_cases(volume, tmp_path, capsys):
    images, labels, table = tmp_path / "images", tmp_path / "labels", tmp_path / "table.csv"
    images.mkdir()
    labels.mkdir()
    head = files.read(volume)
    stack = replace(head, affine=np.diag([5e-5, 8e-6, 8e-6, 1.0]))
    for name, image in (("head", head), ("stack", stack)):
        files.save_image(images / f"{name}.nii.gz", image)
        write_objects_of(images / f"{name}.nii.gz", labels, f"{name}.nii.gz")
    for unit, per_mm in ((None, 1e3), ("mm", 1.0), ("um", 1e3), ("nm", 1e6)):
        options = () if unit is None else ("--unit", unit)
        assert cli.main(["measure", str(images), str(labels), "--out", str(table), *options]) == 0
        rows = rows_of(table)
        sizes = [float(row[f"volume_{unit or 'um'}3"]) for row in rows]
        assert sizes == pytest.approx([volume * per_mm**3 for volume in (70 * 0.7, 36 * 0.7, 70 * 3.2e-15, 36 * 3.2e-15)], rel=1e-6)
        assert len({name.rpartition("_")[2].rstrip("23") for name in rows[0]} & {"mm", "um", "nm"}) == 1
    with pytest.raises(SystemExit):
        cli.main(["measure", str(images), str(labels), "--out", str(table), "--unit", "inch"])
    assert "inch" in capsys.readouterr().err


def test_a_table_takes_the_place_of_no_image(volume, tmp_path, capsys):
    before = volume.read_bytes()
    labels = files.write(tmp_path / "labels.nii.gz", np.ones(files.read(volume).shape, np.uint8), like=files.read(volume))
    assert "expected a text file" in refused(capsys, "measure", volume, labels, "--out", volume)
    assert volume.read_bytes() == before


def test_a_table_that_cannot_be_written_is_refused_before_anything_is_measured(volume, tmp_path, capsys, monkeypatch):
    labels = write_objects_of(volume, tmp_path)
    monkeypatch.setattr(files, "read", None)
    (tmp_path / "folder.csv").mkdir()
    assert "folder.csv is a folder; expected the name of a file" in refused(
        capsys, "measure", volume, labels, "--out", tmp_path / "folder.csv"
    )
    assert "name too long" in refused(capsys, "measure", volume, labels, "--out", tmp_path / f"{'x' * 300}.csv")


def test_a_table_takes_the_place_of_no_names_of_a_label_file(volume, tmp_path, capsys):
    labels = write_objects_of(volume, tmp_path)
    for names in ("index\tname\n3\tnucleus\n", None):
        (tmp_path / "truth.tsv").write_text(names) if names else (tmp_path / "truth.tsv").unlink()
        sentence = refused(capsys, "measure", volume, labels, "--out", tmp_path / "truth.tsv")
        assert "the names of the objects in 'truth.nii.gz' belong; expected" in sentence
        assert (tmp_path / "truth.tsv").exists() == bool(names)
    assert cli.main(["measure", str(volume), str(labels), "--out", str(tmp_path / "table.tsv")]) == 0


@pytest.mark.parametrize("name", ["journal.jsonl", "clicks.JSON", "project.toml", "model.safetensors", "photo.jpg", "labels.ome.zarr"])
def test_a_table_takes_the_place_of_nothing_that_is_read(volume, tmp_path, capsys, name):
    labels = write_objects_of(volume, tmp_path)
    (tmp_path / name).write_text("earlier")
    assert f"{name} was asked for" in refused(capsys, "measure", volume, labels, "--out", tmp_path / name)
    assert (tmp_path / name).read_text() == "earlier"


def test_measure_tells_what_it_cannot_use(volume, tmp_path, capsys):
    labels, table = write_objects_of(volume, tmp_path), tmp_path / "table.csv"
    table.write_text("earlier")
    moved = AFFINE.copy()
    moved[2, 3] += 1
    nibabel.save(nibabel.Nifti1Image(np.zeros((30, 24, 8), np.uint8), moved), tmp_path / "moved.nii.gz")
    assert "voxels away from 'scan'" in refused(capsys, "measure", volume, labels, tmp_path / "moved.nii.gz", "--out", table)
    assert "folder of images" in refused(capsys, "measure", tmp_path, labels, "--out", table)
    (tmp_path / "empty").mkdir()
    assert "no image in" in refused(capsys, "measure", tmp_path, tmp_path / "empty", "--out", table)
    with Journal.create(tmp_path / "session", Image(np.ones((1, 4, 5)), name="other")):
        pass
    assert "about 'other'" in refused(capsys, "measure", volume, labels, "--journal", tmp_path / "session", "--out", table)
    assert table.read_text() == "earlier"


def test_segment_writes_each_object_to_a_file_of_its_own(disks, volume, tmp_path, capsys):
    out = tmp_path / "masks" / "m.mha"
    out.parent.mkdir()
    assert cli.main(["segment", str(volume), "--clicks", str(write_clicks(tmp_path)), "--out", str(out), "--each"]) == 0
    assert sorted(path.name for path in out.parent.iterdir()) == ["m_3.mha", "m_7.mha"]
    for label in (3, 7):
        np.testing.assert_array_equal(files.read_labels(out.parent / f"m_{label}.mha", like=files.read(volume)), by_hand(volume) == label)
    assert "m_3.mha" in capsys.readouterr().out


def test_of_a_damaged_tiff_one_sentence_is_told_and_nothing_that_its_library_says(tmp_path):
    path = tmp_path / "cut.ome.tif"
    whole = files.save_image(
        tmp_path / "a.ome.tif", Image(np.random.default_rng(0).integers(0, 255, (1, 9, 30, 30), np.uint8))
    ).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    script = f"from napari_apprentice.cli import main; main(['measure', {str(path)!r}, {str(path)!r}, '--out', 'table.csv'])"
    err = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True).stderr
    (line,) = [line for line in err.splitlines() if line.strip() and not line.startswith("label maps")]
    assert line.startswith("apprentice: 'cut.ome.tif' is damaged or truncated")
