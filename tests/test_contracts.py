"""What the package promises as a whole: who imports whom, what importing it costs, and what it calls public."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from importlib import import_module, metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import napari_apprentice

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HEAVY = ("torch", "lightning_fabric", "safetensors", "napari", "qtpy", "PyQt6")
CLICKING_WING = next(c for c in PYPROJECT["tool"]["importlinter"]["contracts"] if c["id"] == "wings")["source_modules"]


def loaded_by(code):
    """The heavy packages that a fresh interpreter has loaded after ``code``."""
    tell = f"import sys; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{tell}"], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_import_contracts_hold():
    done = subprocess.run([Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_module_of_core_and_clicking_wing_is_banned_from_torch_and_qt():
    """The other contract would also hold for a module that nobody listed."""
    learning = (
        *(
            "adaptation",
            "costs",
            "exercises",
            "foreign",
            "guidance",
            "importance",
            "optimisers",
            "knowledge",
            "losses",
            "merging",
            "networks",
            "proposals",
        ),
        *("refinement", "samples", "scales", "segmenter", "synthetic", "training", "training_clicks", "weights", "windows", "zoom"),
    )
    faces = ("_napari", "assembly", "cli", "demo", "workbench")
    package = ROOT / "src" / "napari_apprentice"
    names = {p.stem for p in package.glob("*.py")} | {p.parent.name for p in package.glob("*/__init__.py")}
    assert {f"napari_apprentice.{name}" for name in names - {"__init__", *learning, *faces}} == set(CLICKING_WING)


@pytest.mark.parametrize("module", ["", ".session", ".benchmark", ".files", ".journal", ".report", ".fakes"])
def test_importing_loads_neither_torch_nor_napari(module):
    assert loaded_by(f"import napari_apprentice{module}") == []


def test_the_command_line_answers_help_without_torch():
    code = "import contextlib, io, napari_apprentice.cli as cli\nwith contextlib.redirect_stdout(io.StringIO()):\n"
    code += "    try: cli.main(['--help'])\n    except SystemExit: pass"
    assert loaded_by(code) == []


def test_describing_the_machine_does_not_import_torch():
    assert loaded_by("from napari_apprentice import report; assert report.machine('cpu')['torch']") == []


def test_the_engine_can_be_imported_where_there_is_no_napari():
    code = f"import sys\nfor name in {HEAVY[3:]!r}: sys.modules[name] = None\nimport napari_apprentice.assembly, napari_apprentice.cli"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_all_is_exact():
    assert sorted(napari_apprentice.__all__) == [
        "ApprenticeError",
        "Box",
        "Click",
        "Image",
        "Plane",
        "Prediction",
        "Session",
        "create_project",
        "load_segmenter",
        "make_policy",
        "open_case",
        "open_project",
        "open_session",
        "read",
        "read_labels",
        "resume_session",
        "run_project",
        "save_image",
        "write",
    ]
    assert set(dir(napari_apprentice)) == {*napari_apprentice.__all__, "__version__"}
    for name in napari_apprentice.__all__:
        home = import_module(getattr(napari_apprentice, name).__module__)
        assert getattr(home, name) is getattr(napari_apprentice, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = napari_apprentice.nothing


def test_type_checkers_see_the_same_names():
    """The lazy table and the imports under TYPE_CHECKING are two lists of one thing."""
    tree = ast.parse((ROOT / "src" / "napari_apprentice" / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {(node.module.rpartition(".")[2], name.name) for node in block.body if isinstance(node, ast.ImportFrom) for name in node.names}
    assert seen == {(home, name) for home, names in napari_apprentice._HOMES.items() for name in names}


def test_entry_points_lead_somewhere():
    distribution = metadata.distribution("napari-apprentice")
    found = {(point.group, point.name): point for point in distribution.entry_points}
    assert callable(found["console_scripts", "apprentice"].load())
    assert found["napari.manifest", "napari-apprentice"].value == "napari_apprentice:napari.yaml"
    assert (Path(napari_apprentice.__file__).parent / "napari.yaml").exists()
    assert (ROOT / "napari.yaml").resolve() == ROOT / "src" / "napari_apprentice" / "napari.yaml"


def test_exact_versions_lie_in_the_supported_ranges():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pinned = {name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in lines)}
    extras = PYPROJECT["project"]["optional-dependencies"]
    for text in [*PYPROJECT["project"]["dependencies"], *(one for extra in extras.values() for one in extra)]:
        requirement = Requirement(text)
        if requirement.name != "napari-apprentice":
            assert requirement.specifier.contains(pinned[requirement.name.lower()]), text


def test_the_base_installation_has_no_window():
    base = {Requirement(text).name.lower() for text in PYPROJECT["project"]["dependencies"]}
    assert not base & {"napari", "qtpy", "pyqt6", "pyside6", "superqt", "magicgui", "vispy"}
