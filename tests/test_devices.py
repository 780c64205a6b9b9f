"""On another device than the processor all is as on it: nothing that is there is mixed with anything that is here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

PROGRAM = Path(__file__).with_name("elsewhere.py")

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"), reason="this PyTorch knows no devices in Python"
)


def said_by(*command: str) -> str:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, cwd=PROGRAM.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(
    "policy", ["recall", "pi", *(pytest.param(name, marks=pytest.mark.slow) for name in ("none", "practice", "mi+pi", "ia+sa"))]
)
def test_a_session_comes_to_the_same_there(tmp_path, policy):
    told = json.loads(said_by(str(PROGRAM), str(tmp_path), policy))
    assert told["device"] == ["cpu", "elsewhere"]
    assert all(told["same"])
    assert len(told["same"]) == 8
    assert told["weights_apart"] < 1e-3
    assert told["versions"][0] == told["versions"][1] == (1 if policy == "none" else 3)
    assert told["changed"] == [policy not in ("none", "recall")] * 2


def test_training_comes_to_about_the_same_there(tmp_path):
    told = json.loads(said_by(str(PROGRAM), str(tmp_path), "train").splitlines()[-1])
    assert told["device"] == ["cpu", "elsewhere"]
    assert told["same"] == [True, True]
    assert told["weights_apart"] < 0.02, "four steps of Muon, which rounds to eight bits"


def test_the_other_device_refuses_what_a_graphics_card_does():
    refused = ("far + near", "near.add_(far)", "torch.cat([far, far.new_zeros(2), near])", "far.numpy()")
    done = ("far + near.to(far)", "far * torch.tensor(2.0)", "near.copy_(far)", "far.cpu() + near", "far[near.long()]")
    code = f"""
import torch, elsewhere
library = elsewhere.register()
with elsewhere.Elsewhere():
    near = torch.zeros(2)
    far = near.to(elsewhere.NAME)
    for words in {(*refused, *done)}:
        try:
            eval(words)
            print("done")
        except (RuntimeError, TypeError):
            print("refused")
"""
    assert said_by("-c", code).split() == ["refused"] * len(refused) + ["done"] * len(done)
