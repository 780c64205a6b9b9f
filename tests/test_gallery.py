"""The page of all networks, from measured rows."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from napari_apprentice import report
from napari_apprentice.benchmark import Row
from napari_apprentice.types import ReadError

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gallery.py"
if not SCRIPT.exists():
    pytest.skip("the benchmarks are not part of this distribution", allow_module_level=True)
spec = importlib.util.spec_from_file_location("gallery_script", SCRIPT)
gallery = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gallery)


def row(network: str, policy: str = "none", name: str = "nuclei", noc: float = 5.0, **changes: object) -> Row:
    values = {
        "set": name, "network": network, "policy": policy, "robot": "centre", "order": "sorted", "n_objects": 16,
        "noc": {"0.80": noc - 1, "0.85": noc, "0.90": noc + 1}, "nof": {"0.80": 0, "0.85": 1, "0.90": 2},
        "iou_at": {"1": 0.5, "3": 0.6}, "dice_at": {"1": 0.6}, "second_half": {"noc": {}, "iou_at": {}},
        "seconds_per_click": {"encode": 0.01, "decode": 0.1, "adapt": 0.0}, "max_drop": 0.0, "max_clicks": 20, "seed": 0,
        "cases": "*", "limit": 16, "proposed": 1.0, "best_iou_at": {"1": 0.5},
        "cost": {"parameters": 3_000_000, "gflops": 4.1, "memory_mib": 26.0},
    }  # fmt: skip
    return Row(**values | changes)


@pytest.fixture
def written(tmp_path):
    def write(name: str, *rows: Row) -> Path:
        path = tmp_path / name
        report.write_json(path, report.machine("cpu", 1), rows)
        return path

    return write


def lines_of(section: str) -> list[list[str]]:
    """The cells of the table of a section, its heads first."""
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("| ---")]


def test_the_page_has_every_network_and_policy_in_the_mean_and_by_set(written):
    several = {"proposed": 3.0, "best_iou_at": {"1": 0.7}}
    rows = [row(n, p, s, noc, **more) for n, more in (("unet", {}), ("diversity", several)) for p in ("none", "mi+pi")
            for s, noc in (("nuclei", 4.0), ("tumour", 8.0))]  # fmt: skip
    text = gallery.page(
        written("gallery.json", *rows),
        written("hard.json", row("unet", max_clicks=100, noc=60.0)),
        [written("cdnet.json", row("cdnet"), row("cdnet-baseline", noc=9.0))],
        written("policies.json", row("unet"), row("unet", "ia+sa")),
    )
    titles = ["Networks", "Networks and policies", "Hard objects, many clicks", "What the parts are worth: cdnet", "Set by set"]
    sections = text.split("\n## ")[1:]
    assert [section.splitlines()[0] for section in sections] == titles
    heads, *means = lines_of(sections[0])
    assert [(line[1], line[2]) for line in means] == [(n, p) for n in ("unet", "diversity") for p in ("none", "mi+pi")]
    assert {"M", "GFLOPs", "MiB", "click s", "NoC@0.85", "NoF@0.85", "NoF@0.90", "IoU@1", "best IoU@1"} <= set(heads)
    at = {head: number for number, head in enumerate(heads)}
    assert [line[at["NoC@0.85"]] for line in means] == 4 * ["6.00"]
    assert [line[at["best IoU@1"]] for line in means] == ["", "", "0.700", "0.700"]
    assert [(line[1], line[2]) for line in lines_of(sections[1])[1:]] == [("unet", "none"), ("unet", "ia+sa")]
    assert "before the model learns" in sections[1]
    assert "At most 100 clicks" in sections[2]
    assert [line[1] for line in lines_of(sections[3])[1:]] == ["cdnet", "cdnet-baseline"]
    assert len(lines_of(sections[4])) == 1 + len(rows)


def test_rows_of_an_earlier_version_have_no_costs(written, tmp_path):
    path = written("old.json", row("unet"))
    content = json.loads(path.read_text())
    for key in ("cost", "proposed", "best_iou_at"):
        del content["rows"][0][key]
    path.write_text(json.dumps(content))
    assert "GFLOPs" not in gallery.page(path, None, [])


@pytest.mark.parametrize("text", ["", "[]", '{"machine": {}}', '{"machine": {}, "rows": []}', '{"machine": {}, "rows": [{"set": "a"}]}'])
def test_what_holds_no_rows_is_refused(tmp_path, text):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(ReadError, match=r"rows\.json"):
        gallery.page(path, None, [])
    with pytest.raises(ReadError, match=r"none\.json"):
        gallery.page(tmp_path / "none.json", None, [])
