"""Muon on kernels is Muon on the matrices that they are, and everything that learns is moved by exactly one optimiser."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from napari_apprentice import optimisers as module
from napari_apprentice.networks import build
from napari_apprentice.optimisers import Kernels, are_matrices, optimisers
from napari_apprentice.types import RecipeError

RATES = {"adamw": 1e-3, "muon": 0.02}


def moved_by(adamw, muon) -> list[int]:
    """Where the memory begins of everything that is moved."""
    every = [adamw] if muon is None else [adamw, muon.optimiser]
    return [p.data_ptr() for one in every for group in one.param_groups for p in group["params"]]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(12, 20, 3, 3), (24, 9, 1, 1), (32, 16)])
def test_a_kernel_moves_as_its_matrix_does(shape, layout):
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(shape).to(memory_format=layout if len(shape) == 4 else torch.contiguous_format))
    matrix = nn.Parameter(kernel.detach().clone().flatten(1))
    muon, plain = Kernels([kernel], lr=0.1, weight_decay=0.1), torch.optim.Muon([matrix], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        gradient = torch.randn(shape)
        kernel.grad, matrix.grad = gradient, gradient.flatten(1).clone()
        muon.take_gradients()
        muon.optimiser.step()
        plain.step()
        torch.testing.assert_close(kernel.detach().flatten(1), matrix.detach(), atol=2e-3, rtol=0)  # it rounds to eight bits


def test_a_step_goes_the_same_way_in_every_direction():
    """What Muon is for: the singular values of an update are about equal, however unequal those of the gradient are."""
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.zeros(16, 32, 3, 3))
    muon = Kernels([kernel], lr=1.0, weight_decay=0.0)
    kernel.grad = (torch.randn(16, 4) @ torch.randn(4, 288) + 0.1 * torch.randn(16, 288)).reshape(kernel.shape)
    before = torch.linalg.svdvals(kernel.grad.flatten(1))
    muon.take_gradients()
    muon.optimiser.step()
    after = torch.linalg.svdvals(kernel.detach().flatten(1))
    assert before.max() / before.min() > 20
    assert after.max() / after.min() < 3


def test_a_kernel_without_a_gradient_stays():
    kernel = nn.Parameter(torch.ones(16, 16, 3, 3))
    muon = Kernels([kernel], lr=0.1, weight_decay=0.1)
    muon.take_gradients()
    muon.optimiser.step()
    assert bool((kernel == 1).all())


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("only", ["", "recall"])
def test_what_learns_is_moved_once_and_nothing_else_is(name, only):
    network = build("unet", {"likeness": 6, "recall": 16})
    for key, parameter in network.named_parameters():
        parameter.requires_grad_(key.startswith(only))
    adamw, muon = optimisers(network, name, RATES, 0.01)
    learning = {p.data_ptr() for p in network.parameters() if p.requires_grad}
    assert sorted(moved_by(adamw, muon)) == sorted(learning)
    assert (muon is not None) == (name == "muon")
    decays = {p.data_ptr(): group["weight_decay"] for group in adamw.param_groups for p in group["params"]}
    assert all(decays.get(p.data_ptr(), 0.01) == (0.01 if p.ndim > 1 else 0.0) for p in network.parameters() if p.requires_grad)


def test_the_first_and_the_last_layer_are_no_matrices():
    network = build("unet", {"likeness": 6})
    matrices = {key for key, parameter in network.named_parameters() if are_matrices(parameter)}
    assert not matrices & {"stem.weight", "patches.0.weight", "to_logits.weight", "fine.weight", "to_iou.2.weight"}
    assert {"encoder.1.1.conv1.weight", "decoder.0.conv2.weight", "lateral.0.weight", "context.weight"} <= matrices


def test_a_pytorch_without_muon_is_told(monkeypatch):
    monkeypatch.delattr(module.torch.optim, "Muon")
    with pytest.raises(RecipeError, match=r"expected PyTorch 2\.9"):
        optimisers(build("unet"), "muon", RATES, 0.01)
    assert optimisers(build("unet"), "adamw", RATES, 0.01)[1] is None
