"""Classes of objects: naming is what a dictionary does, and a table on disk gives all of it back."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_apprentice.legend import PALETTE, Legend, legend_path, read_legend, write_beside, write_legend
from napari_apprentice.types import LabelsError, ReadError, WriteError

printable = st.text(st.characters(blacklist_categories=("Cc", "Cs", "Z")), min_size=1, max_size=12)
named = st.dictionaries(st.integers(1, 2**32 - 1), printable, max_size=6)


def legend_of(names) -> Legend:
    legend = Legend()
    for label, name in names.items():
        legend = legend.naming(label, name)
    return legend


@given(named)
def test_every_object_is_in_the_class_it_was_put_in_last(names):
    legend = legend_of(names)
    assert legend.names == names
    assert {label: name for name, labels in legend.classes.items() for label in labels} == names
    for label, name in names.items():
        assert legend.color(label) == legend.colors[name]
        assert label not in legend.naming(label, " ").names
        assert legend.naming(label, name) == legend
    assert len(set(legend.colors.values())) == min(len(legend.colors), len(PALETTE))


def test_what_else_a_table_says_of_its_objects_stays(tmp_path):
    path = tmp_path / "scan_labels.tsv"
    path.write_text("index\tname\tabbreviation\tmapping\n0\tbackground\tbg\t0\n2\tcup\tcp\t17\n5\trim\trm\t3\n")
    write_legend(path, legend_of({2: "optic cup", 7: "vessel"}))
    assert read_legend(path).names == {2: "optic cup", 7: "vessel"}
    columns, *rows = [line.split("\t") for line in path.read_text().splitlines()]
    said = [dict(zip(columns, row, strict=True)) for row in rows]
    assert [(row["index"], row["abbreviation"], row["mapping"]) for row in said] == [("0", "bg", "0"), ("2", "cp", "17"), ("7", "", "")]


def test_the_number_of_an_object_may_be_written_in_several_ways(tmp_path):
    path = tmp_path / "scan_labels.tsv"
    path.write_text("index\tname\tabbreviation\n00\tbackground\tbg\n02\tcup\tcp\n 5\trim\trm\n")
    write_legend(path, legend_of({2: "optic cup", 5: "rim"}))
    assert [line.split("\t")[-1] for line in path.read_text().splitlines()] == ["abbreviation", "bg", "cp", "rm"]


def test_a_table_of_something_else_is_not_replaced(tmp_path):
    path = tmp_path / "scan_labels.tsv"
    path.write_text("subject\tage\n1\t70\n")
    with pytest.raises(WriteError, match="which is something else"):
        write_beside(tmp_path / "scan_labels.nii.gz", legend_of({1: "cup"}))
    assert path.read_text() == "subject\tage\n1\t70\n"


@given(named)
def test_reading_is_the_inverse_of_writing(names):
    legend = legend_of(names)
    with tempfile.TemporaryDirectory() as folder:
        again = read_legend(write_legend(Path(folder) / "names.tsv", legend))
    assert again.names == legend.names
    assert all(again.color(label) == legend.color(label) for label in names)


def test_a_colour_is_that_of_the_class():
    legend = legend_of({1: "disc", 2: "cup", 3: "disc"}).naming(3, "disc", "#ABCDEF")
    assert [legend.color(label) for label in (1, 2, 3, 4)] == ["#abcdef", PALETTE[1], "#abcdef", None]
    assert legend.classes == {"disc": (1, 3), "cup": (2,)}


@pytest.mark.parametrize("name", ["\u05d0\u200f", "\U0001f468\u200d\U0001f52c", "co\u00adop"])
def test_a_name_may_hold_marks_that_nobody_sees(name):
    assert Legend().naming(1, name).names == {1: name}


def test_the_spaces_of_a_word_processor_are_spaces():
    assert legend_of({1: "l\u00e9sion gauche", 2: "l\u00e9sion\u00a0gauche", 3: "\u3000l\u00e9sion\u202fgauche "}).classes == {
        "l\u00e9sion gauche": (1, 2, 3)
    }


@pytest.mark.parametrize(
    ("name", "color", "message"),
    [
        ("a\nb", None, "one line"),
        ("a\u2028b", None, "one line"),
        ("\ud800", None, "one line"),
        ("x" * 81, None, "80"),
        ("x", "red", "colour 'red'"),
    ],
)
def test_what_is_no_name_and_no_colour_is_refused(name, color, message):
    with pytest.raises(LabelsError, match=message):
        Legend().naming(1, name, color)


@pytest.mark.parametrize(
    "name",
    ["scan_labels.nii.gz", "scan_labels.ome.tif", "scan_labels.png", "scan_labels.ome.zarr", "scan_labels.NII.GZ", "scan_labels.OME.TIF"],
)
def test_the_table_lies_beside_the_labels(name):
    assert legend_path(Path("folder") / name) == Path("folder/scan_labels.tsv")


def test_tables_of_other_programs_are_read(tmp_path):
    path = tmp_path / "dseg.tsv"
    path.write_text("index\tname\tabbreviation\n0\tbackground\tbg\n3\tcup\tc\n")
    assert read_legend(path) == Legend({3: "cup"}, {"cup": PALETTE[0]})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("label\tname\n1\tx\n", "has the columns label, name; expected index and name"),
        ("index,name\n1,x\n", "has the columns index,name; expected index and name, separated by tabs"),
        ("index\tname\n1\tx\none\tx\n", "line 3 of {path} says 'one', 'x'; expected the number of an object"),
        ("index\tname\n-1\tx\n", "line 2 of {path} says '-1', 'x'; expected the number of an object"),
        ("index\tname\n1\tleft\n01\tright\n", "line 3 of {path} names 1 again; expected one line for every object"),
        ("index\tname\n1\n", "line 2 of {path} cannot be used: the class name None arrived; expected one line"),
        ("index\tname\tcolor\n1\tx\tred\n", "line 2 of {path} cannot be used: the colour 'red' arrived; expected one like"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_with_its_line(tmp_path, text, said):
    path = tmp_path / "names.tsv"
    path.write_text(text)
    with pytest.raises(ReadError, match=re.escape(said.format(path=path))):
        read_legend(path)


def test_the_table_beside_labels_tells_no_names_that_are_gone(tmp_path):
    labels = tmp_path / "scan_labels.nii.gz"
    write_beside(labels, Legend())
    assert list(tmp_path.iterdir()) == []
    write_beside(labels, Legend().naming(3, "cup"))
    assert read_legend(legend_path(labels)).names == {3: "cup"}
    write_beside(labels, Legend())
    assert read_legend(legend_path(labels)).names == {}


def test_another_table_beside_labels_without_names_stays(tmp_path):
    legend_path(tmp_path / "scan_labels.nii.gz").write_text("time\tdose\n1\t2\n")
    write_beside(tmp_path / "scan_labels.nii.gz", Legend())
    assert (tmp_path / "scan_labels.tsv").read_text() == "time\tdose\n1\t2\n"


def test_a_table_that_excel_saved_is_read(tmp_path):
    path = tmp_path / "names.tsv"
    path.write_text("index\tname\r\n3\tcup\r\n", "utf-8-sig")
    assert read_legend(path).names == {3: "cup"}


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(ReadError, match="cannot be read"):
        read_legend(tmp_path / "nothing.tsv")
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="cannot be written"):
        write_legend(tmp_path / "file" / "names.tsv", Legend())


def test_a_colour_that_a_table_does_not_know_is_one_of_the_palette(tmp_path):
    path = tmp_path / "labels.tsv"
    path.write_text("index\tname\tcolor\n1\tcup\t#ff0000\n2\tdisc\tn/a\n3\trim\t\n", "utf-8")
    found = read_legend(path)
    assert found.names == {1: "cup", 2: "disc", 3: "rim"}
    assert found.colors["cup"] == "#ff0000"
    assert {found.colors["disc"], found.colors["rim"]} <= set(PALETTE)
