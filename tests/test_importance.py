"""Memory-Aware Synapses against closed forms, in double precision."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from napari_apprentice.importance import memory_aware_synapses
from napari_apprentice.networks import build


class Linear(nn.Module):
    """z = a · image + b · guidance + c in every pixel; ``unused`` plays no part."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([0.7, -0.4, 0.2], dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor([1.1, -0.9], dtype=torch.float64))
        self.c = nn.Parameter(torch.tensor(-0.3, dtype=torch.float64))
        self.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def encode(self, image: Tensor) -> Tensor:
        return image

    def decode(self, features: Tensor, guidance: Tensor, previous: Tensor) -> SimpleNamespace:
        z = torch.einsum("c,bchw->bhw", self.a, features) + torch.einsum("c,bchw->bhw", self.b, guidance) + self.c
        return SimpleNamespace(logits=z[:, None])


def samples(count: int, dtype: torch.dtype = torch.float64, size: int = 4) -> list[tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(count)
    return [tuple(torch.randn(1, c, size, size, generator=generator, dtype=dtype) for c in (3, 2, 1)) for _ in range(count)]


def test_a_linear_network_has_the_importance_of_the_closed_form():
    """∂ Σ p² / ∂a = Σ 2 p² (1 − p) x, for p the logistic function of a linear one."""
    network, data = Linear(), samples(5)
    expected = {"a": torch.zeros(3), "b": torch.zeros(2), "c": torch.zeros(())}
    for image, guidance, _ in data:
        z = (network.a[:, None, None] * image[0]).sum(0) + (network.b[:, None, None] * guidance[0]).sum(0) + network.c
        p = 1 / (1 + torch.exp(-z.detach()))
        slope = 2 * p**2 * (1 - p)
        expected["a"] = expected["a"] + (slope * image[0]).sum((1, 2)).abs() / 5
        expected["b"] = expected["b"] + (slope * guidance[0]).sum((1, 2)).abs() / 5
        expected["c"] = expected["c"] + slope.sum().abs() / 5
    found = memory_aware_synapses(network, data)
    assert found.keys() == {"a", "b", "c", "unused"}
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-12, atol=1e-12)
    assert not found["unused"].any()


def test_opposite_samples_do_not_cancel():
    """The mean is over absolute values, not the absolute value of the mean."""
    image = torch.full((1, 3, 1, 1), 2.0, dtype=torch.float64)
    network = Linear()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    rest = torch.zeros(1, 2, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    found = memory_aware_synapses(network, [(image, *rest), (-image, *rest)])
    torch.testing.assert_close(found["a"], torch.full((3,), 2 * 0.5**2 * 0.5 * 2.0, dtype=torch.float64))


def test_the_mean_is_over_samples():
    network, data = Linear(), samples(6)
    whole, parts = memory_aware_synapses(network, data), [memory_aware_synapses(network, part) for part in (data[:2], data[2:])]
    for key, value in whole.items():
        torch.testing.assert_close(value, (2 * parts[0][key] + 4 * parts[1][key]) / 6, rtol=1e-12, atol=1e-12)


def test_a_network_of_the_package_can_be_weighed_and_stays_as_it_was():
    torch.manual_seed(0)
    network = build("unet", {"widths": [8, 16, 16, 16, 16], "groups": 4}).eval()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    found = memory_aware_synapses(network, samples(2, torch.float32, 64))
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in network.named_parameters()}
    assert all(bool(v.isfinite().all()) and bool((v >= 0).all()) for v in found.values())
    assert found["to_logits.weight"].min() > 0
    assert not any(found[k].any() for k in found if k.startswith("to_iou"))  # judging does not change the answer
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def test_nothing_matters_to_no_samples():
    assert not any(v.any() for v in memory_aware_synapses(Linear(), []).values())


@pytest.mark.parametrize("factor", [0.0, 3.0])
def test_importance_is_that_of_the_probability_not_of_the_logit(factor):
    """A saturated answer has nothing to lose: far from the boundary the importance vanishes."""
    network, data = Linear(), samples(3)
    with torch.no_grad():
        network.c.fill_(40.0 * factor)
    assert bool(memory_aware_synapses(network, data)["c"] < 1e-12) is (factor > 0)
