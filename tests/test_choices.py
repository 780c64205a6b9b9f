"""The page of what the default was chosen by, from measured rows."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from napari_apprentice import report
from napari_apprentice.benchmark import Row

FOLDER = Path(__file__).parents[1] / "benchmarks"
if not FOLDER.exists():
    pytest.skip("the benchmarks are not part of this distribution", allow_module_level=True)


@pytest.fixture(scope="module")
def choices():
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("choices_script", FOLDER / "choices.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


def row(network: str, name: str, noc: float) -> Row:
    return Row(
        set=name, network=network, policy="none", robot="centre", order="sorted", n_objects=4, noc={"0.85": noc}, nof={"0.85": 1},
        iou_at={"1": noc / 20}, dice_at={"1": 0.6}, second_half={"noc": {}, "iou_at": {}}, max_drop=0.0, max_clicks=20, seed=0,
        seconds_per_click={"encode": 0.0, "decode": 0.1, "adapt": 0.0}, cases="*", limit=4, proposed=1.0, best_iou_at={}, cost={},
    )  # fmt: skip


def written(path: Path, *rows: Row) -> Path:
    report.write_json(path, report.machine("cpu", 1), rows)
    return path


def test_a_family_counts_by_the_mean_of_its_sets_alone(choices):
    rows = [row("unet", name, 4.0) for sets in choices.FAMILIES.values() for name in sets]
    rows += [row("unet-without-mri", name, noc) for name, noc in zip(choices.FAMILIES["mri"], (6.0, 8.0, 10.0, 12.0), strict=True)]
    rows += [row("unet-without-mri", "cells_wbc", 20.0), row("unet-without-em", "cells_wbc", 20.0)]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in choices.without_family(rows).splitlines()]
    with_mri, without_mri = lines[2:4]
    assert lines[0][:2] == ["what", "network"]
    assert with_mri[0] == without_mri[0] == "mri"
    assert without_mri[1] == "unet-without-mri"
    assert with_mri[3:] == ["4.00", "0.200"]
    assert without_mri[3:] == ["9.00", "0.450"]
    assert not any(line[1] == "unet-without-em" for line in lines)  # never measured on the sets of its family


def test_the_families_are_those_that_recipes_leave_out(choices):
    recipes = {path.stem.removeprefix("unet-without-") for path in (FOLDER.parent / "recipes" / "ablations").glob("unet-without-*.toml")}
    assert recipes - {"previous"} == set(choices.FAMILIES)


def test_the_page_says_where_each_table_comes_from(choices, tmp_path):
    data = written(tmp_path / "data.json", row("unet", "cells_wbc", 4.0), row("unet-real", "cells_wbc", 5.0))
    networks = written(tmp_path / "networks.json", row("latefusion", "cells_wbc", 6.0))
    looks = written(tmp_path / "looks.json", row("unet (mirror=false)", "cells_wbc", 7.0))
    sections = choices.page(data, networks, looks).split("\n## ")
    assert [section.splitlines()[0] for section in sections[1:]] == [
        "Training data", "Network, clicks and working size", "Where and how to look", "Set by set",
    ]  # fmt: skip
    for section, name in zip(sections[1:], ("unet-real", "latefusion", "unet (mirror=false)"), strict=False):
        assert name in section
        assert "Measured on" in section
    assert all(name in sections[4] for name in ("unet-real", "latefusion", "mirror=false"))
