"""How the worker gets PyTorch: with it the import works as ever, without it everything else does."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from napari_apprentice._napari import engine


@pytest.mark.parametrize("collecting", [True, False])
def test_looking_for_garbage_goes_on_as_before_even_if_nothing_can_be_imported(monkeypatch, collecting):
    monkeypatch.setattr(engine.sys, "modules", {})
    monkeypatch.setattr(engine.util, "find_spec", lambda name: None)
    seen = []

    def missing(name):
        seen.append((name, gc.isenabled()))
        raise ImportError(name)

    monkeypatch.setattr(engine, "import_module", missing)
    (gc.enable if collecting else gc.disable)()
    try:
        engine.load_libraries()
        assert gc.isenabled() == collecting
    finally:
        gc.enable()
    assert seen == [("torch", False), ("pandas", False), ("napari_apprentice.assembly", False)]


@pytest.mark.slow
def test_pytorch_computes_after_its_libraries_were_loaded_first():
    code = """
import sys
from napari_apprentice._napari.engine import load_libraries
assert "torch" not in sys.modules
load_libraries()
import torch
print(int(torch.ones(3, 3).matmul(torch.ones(3, 3)).sum()), "pandas" in sys.modules, "napari_apprentice.assembly" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["27", "True", "True"]
