"""What a click costs: against counts made by hand."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from napari_apprentice.costs import TensorMemory, cost_of_click
from napari_apprentice.networks import NETWORKS, Output, build
from napari_apprentice.segmenter import NetworkSegmenter, ZoomConfig
from napari_apprentice.weights import LoadedWeights

SIDE = 32
PLAIN = ZoomConfig(size=SIDE, wider=(), mirror=False, closer=0.0)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


class Counted(nn.Module):
    """Convolutions of the image and of the clicks, a product of matrices, and attention: all of a size that one can count."""

    def __init__(self, *, attends: bool = True) -> None:
        super().__init__()
        self.config = SimpleNamespace(guidance="disk", disk_radius_px=3.0)
        self.see, self.hear = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(7, 1, 1)
        self.mix = nn.Linear(SIDE, 5)
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True) if attends else None

    def encode(self, image: Tensor) -> Tensor:
        return self.see(image)

    def decode(self, features: Tensor, guidance: Tensor, previous: Tensor) -> Output:
        logits = self.hear(torch.cat([features, guidance, previous], 1))
        self.mix(logits)
        if self.attend is not None:
            tokens = features[:, :, :8, 0].mT
            self.attend(tokens, tokens, tokens)
        return Output(logits, logits.mean((1, 2, 3)))


def segmenter(network: nn.Module, zoom: ZoomConfig = PLAIN) -> NetworkSegmenter:
    return NetworkSegmenter(LoadedWeights(network.eval(), "counted", {}, "0"), "cpu", zoom)


def test_operations_and_parameters_are_those_that_one_counts():
    pixels = SIDE**2
    convolutions = 2 * pixels * (3 * 9 * 4 + 7)
    product = 2 * SIDE * SIDE * 5
    attention = 2 * 8 * 4 * (3 * 4 + 4) + 2 * 2 * (8 * 8 * 2) * 2  # in and out; queries with keys, weights with values, by head
    found = cost_of_click(segmenter(Counted()))
    assert found["gflops"] * 1e9 == pytest.approx(convolutions + product + attention, rel=1e-6)
    assert found["parameters"] == 4 * 28 + 8 + 5 * (SIDE + 1) + (12 * 4 + 12) + (16 + 4)


@pytest.mark.parametrize(
    ("wider", "mirror", "closer", "looks"),
    [((), False, 0.0, 1), ((), True, 0.0, 2), ((1.5, 2.0), True, 0.0, 6), ((1.5, 2.0), True, 2.0, 8)],
)
def test_every_look_counts(wider, mirror, closer, looks):
    once = cost_of_click(segmenter(Counted()))
    found = cost_of_click(segmenter(Counted(), ZoomConfig(size=SIDE, wider=wider, mirror=mirror, closer=closer)))
    assert found["gflops"] == pytest.approx(looks * once["gflops"])
    assert found["parameters"] == once["parameters"]


def test_memory_is_that_of_weights_inputs_and_what_is_made_of_them():
    """When the maps are joined: 6 channels of inputs, 4 of features, 7 joined; later less."""
    network = Counted(attends=False)
    weights = sum(p.numel() for p in network.parameters())
    found = cost_of_click(segmenter(network))["memory_mib"] * 2**20
    joined = 4 * (weights + (6 + 4 + 7) * SIDE**2)
    beside = 4 * (SIDE**2 + SIDE * 5)  # the logits, and the product, which nobody keeps
    assert joined <= found <= joined + beside + 64


def test_memory_goes_up_and_down_with_what_is_alive():
    given = torch.zeros(256)
    with TensorMemory(given) as memory:
        assert memory.bytes == given.nbytes
        first = given + 1
        second = first * 2
        assert memory.bytes == 3 * given.nbytes
        del first
        gc.collect()
        assert memory.bytes == 2 * given.nbytes
        view = second.view(16, 16)[3:]  # shares memory
        second.add_(1)
        assert memory.bytes == 2 * given.nbytes
        del second
        assert memory.bytes == 2 * given.nbytes
        del view
        gc.collect()
        assert memory.bytes == given.nbytes
    assert memory.peak_bytes == 3 * given.nbytes


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_can_be_measured_and_stays_as_it_is(name):
    torch.manual_seed(0)
    network = build(name)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    found = cost_of_click(segmenter(network, ZoomConfig(size=64)))
    assert set(found) == {"parameters", "gflops", "memory_mib"}
    assert found["parameters"] == sum(p.numel() for p in network.parameters())
    assert found["memory_mib"] > 4 * found["parameters"] / 2**20
    assert found["gflops"] > 0
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    assert cost_of_click(segmenter(network, ZoomConfig(size=64))) == found
