"""Every registered network keeps the promises of the package; the U-Net its own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from napari_apprentice.networks import NETWORKS, UNet, UNetConfig, build, config_of
from napari_apprentice.types import WeightsError

TINY = {"unet": {"widths": [8, 16, 16, 16, 16], "groups": 4}}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(params=sorted(NETWORKS))
def network(request) -> nn.Module:
    """A small network whose every weight matters (fresh residual branches are zero)."""
    torch.manual_seed(0)
    found = build(request.param, TINY[request.param])
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return found.eval()


def inputs(batch: int, height: int = 64, width: int = 64, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(batch, 3, height, width, generator=generator)
    guidance = (torch.rand(batch, 2, height, width, generator=generator) > 0.99).float()
    return image, guidance, torch.rand(batch, 1, height, width, generator=generator)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 64), (96, 96), (160, 160), (64, 96)])
def test_the_mask_has_the_size_of_the_image(network, height, width):
    with torch.no_grad():
        output = network(*inputs(2, height, width))
    assert output.logits.shape == (2, 1, height, width)
    assert output.iou_logits.shape == (2,)
    assert bool(torch.isfinite(output.logits).all())


def test_the_stride_divides_every_working_size(network):
    assert 128 % network.config.stride == 0
    assert 192 % network.config.stride == 0


def test_images_of_a_batch_do_not_see_each_other(network):
    both = inputs(2)
    with torch.no_grad():
        together = network(*both)
        apart = [network(*(x[i : i + 1] for x in both)) for i in range(2)]
    torch.testing.assert_close(together.logits, torch.cat([o.logits for o in apart]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together.iou_logits, torch.cat([o.iou_logits for o in apart]), rtol=1e-5, atol=1e-5)
    assert float((together.logits[0] - together.logits[1]).abs().max()) > 1e-3


def test_training_mode_says_what_evaluation_mode_says(network):
    given = inputs(1)
    with torch.no_grad():
        evaluated = network.eval()(*given)
        trained = network.train()(*given)
    assert torch.equal(evaluated.logits, trained.logits)
    assert torch.equal(evaluated.iou_logits, trained.iou_logits)


def test_nothing_but_parameters_is_learnt_or_remembered(network):
    assert not list(network.buffers())
    before = copy.deepcopy(network.state_dict())
    network.train()(*inputs(2))
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_forward_is_decode_of_encode(network):
    image, guidance, previous = inputs(1)
    with torch.no_grad():
        assert torch.equal(network(image, guidance, previous).logits, network.decode(network.encode(image), guidance, previous).logits)


@pytest.mark.parametrize("which", [0, 1, 2], ids=["image", "guidance", "previous"])
def test_every_input_matters(network, which):
    given = list(inputs(1))
    with torch.no_grad():
        plain = network(*given).logits
        given[which] = torch.roll(given[which], 7, dims=3)
        assert float((network(*given).logits - plain).abs().max()) > 1e-3


def test_judging_the_mask_sends_no_gradient_into_it(network):
    output = network(*inputs(1))
    parameters = dict(network.named_parameters())
    gradients = torch.autograd.grad(output.iou_logits.sum(), list(parameters.values()), allow_unused=True, retain_graph=True)
    reached = {k for k, g in zip(parameters, gradients, strict=True) if g is not None and bool(g.any())}
    assert reached
    assert all("iou" in name for name in reached)
    mask_gradients = torch.autograd.grad(output.logits.sum(), list(parameters.values()), allow_unused=True)
    missed = {k for k, g in zip(parameters, mask_gradients, strict=True) if g is None}
    assert all("iou" in name for name in missed)


def test_the_configuration_builds_the_network_again(network):
    name, config = config_of(network)
    again = build(name, config)
    assert config_of(again) == (name, config)
    again.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(*inputs(1)).logits, network(*inputs(1)).logits)


def test_a_missing_configuration_takes_the_defaults():
    assert build("unet").config == UNetConfig()
    assert build("unet", {"groups": 4}).config == UNetConfig(groups=4)


def test_what_is_unknown_is_refused():
    with pytest.raises(WeightsError, match=r"'vnet'.*expected one of .*unet"):
        build("vnet")
    with pytest.raises(WeightsError, match=r"depth.*expected only .*widths"):
        build("unet", {"depth": 3})
    with pytest.raises(WeightsError, match=r"Linear.*unet"):
        config_of(nn.Linear(1, 1))

    class Other(UNet):
        pass

    with pytest.raises(WeightsError, match="Other"):
        config_of(Other(UNetConfig(widths=(4, 4), blocks=(1, 1), groups=2)))


def test_a_fresh_network_is_undecided_about_every_pixel():
    torch.manual_seed(0)
    with torch.no_grad():
        logits = build("unet", TINY["unet"])(*inputs(4)).logits
    assert 0.0 < float(logits.abs().mean()) < 3.0


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_weight_learns(name):
    """After two steps no parameter is as it was: no branch is switched off for good."""
    torch.manual_seed(0)
    network = build(name, {"widths": [8, 16, 16, 16, 16], "groups": 4})
    before = {key: value.detach().clone() for key, value in network.named_parameters()}
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(2):
        output = network(torch.randn(2, 3, 64, 64), torch.rand(2, 2, 64, 64), torch.rand(2, 1, 64, 64))
        optimiser.zero_grad()
        (output.logits.square().mean() + output.iou_logits.square().mean()).backward()
        optimiser.step()
    assert [key for key, value in network.named_parameters() if torch.equal(value, before[key])] == []
