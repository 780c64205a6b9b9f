"""CDNet: what clicks say spreads as the formula says, the best latent head alone learns, and the sizes are those of the paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_apprentice.guidance import WindowClick, click_maps
from napari_apprentice.losses import cross_entropy, diversified_training
from napari_apprentice.networks import build
from napari_apprentice.networks.cdnet import CDNet, CDNetConfig, FeatureDiffusion, conditional_affinity
from napari_apprentice.types import WeightsError

TINY = {"width": 8, "aspp_width": 16, "low_width": 8, "atrous": [1, 2]}
seeds = st.integers(0, 10_000)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def tiny(**changes: object) -> CDNet:
    torch.manual_seed(0)
    return build("cdnet", TINY | changes)


def shown(*clicks: WindowClick, batch: int = 1, size: int = 64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random pixels, Gaussians about the clicks, and no previous mask."""
    generator = torch.Generator().manual_seed(1)
    maps = click_maps(clicks, (size, size), "gaussian", 10.0).expand(batch, -1, -1, -1)
    return torch.randn(batch, 3, size, size, generator=generator), maps, torch.zeros(batch, 1, size, size)


def square(batch: int = 1, size: int = 64) -> torch.Tensor:
    target = torch.zeros(batch, 1, size, size)
    target[..., 16:40, 16:48] = 1
    return target


# --- feature diffusion ------------------------------------------------------------------------------------------------------------------


def drawn(seed: int, places: int = 7, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    affinity = 3 * torch.randn(batch, places, places, generator=generator, dtype=torch.float64)
    sources = torch.rand(batch, 2, places, generator=generator, dtype=torch.float64)
    foreground = torch.rand(batch, 1, places, generator=generator, dtype=torch.float64)
    return affinity, sources, torch.cat([foreground, 1 - foreground], dim=1)


def plain_affinity(affinity: np.ndarray, sources: np.ndarray, destinations: np.ndarray) -> np.ndarray:
    """Equation 4 in words, number by number."""
    batch, places, _ = affinity.shape
    total = np.zeros_like(affinity)
    for image in range(batch):
        for sign in range(2):
            for i in range(places):
                weights = [math.exp(sources[image, sign, j] * affinity[image, i, j]) for j in range(places)]
                for j in range(places):
                    total[image, i, j] += weights[j] / sum(weights) * destinations[image, sign, i]
    return total


@settings(max_examples=20)
@given(seeds)
def test_affinities_are_those_of_the_plain_rule(seed):
    given_ = drawn(seed)
    np.testing.assert_allclose(conditional_affinity(*given_).numpy(), plain_affinity(*(x.numpy() for x in given_)), rtol=1e-10)


@settings(max_examples=20)
@given(seeds)
def test_every_place_gathers_one_whole_and_nothing_negative(seed):
    flows = conditional_affinity(*drawn(seed))
    assert bool((flows >= 0).all())
    torch.testing.assert_close(flows.sum(2), torch.ones_like(flows[..., 0]))


def test_places_that_resemble_only_themselves_keep_what_they_have():
    _, sources, destinations = drawn(0)
    flows = conditional_affinity(1e4 * torch.eye(7, dtype=torch.float64).expand(2, -1, -1), torch.ones_like(sources), destinations)
    torch.testing.assert_close(flows, torch.eye(7, dtype=torch.float64).expand(2, -1, -1))


def test_nothing_spreads_where_nothing_was_clicked():
    affinity, sources, destinations = drawn(0)
    flows = conditional_affinity(affinity, torch.zeros_like(sources), destinations)
    torch.testing.assert_close(flows, torch.full_like(flows, 1 / 7))


def test_foreground_listens_to_positive_clicks_alone():
    affinity, sources, _ = drawn(0)
    everywhere = torch.stack([torch.ones(2, 7), torch.zeros(2, 7)], dim=1).double()
    plain = conditional_affinity(affinity, sources, everywhere)
    other = conditional_affinity(affinity, torch.stack([sources[:, 0], sources[:, 1].flip(1)], dim=1), everywhere)
    assert torch.equal(plain, other)
    assert not torch.equal(plain, conditional_affinity(affinity, sources.flip(2), everywhere))


def test_the_gradient_of_feature_diffusion_is_right():
    torch.manual_seed(0)
    module = FeatureDiffusion(3).double()
    x = torch.randn(1, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    sources = torch.rand(1, 2, 2, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: module(x, sources), (x,))


def test_feature_diffusion_is_the_formula_of_its_parts():
    torch.manual_seed(0)
    module, x, sources = FeatureDiffusion(4), torch.randn(2, 4, 3, 5), torch.rand(2, 2, 3, 5)
    with torch.no_grad():
        found, guess = module(x, sources)
        theta, phi, g = (part(x).flatten(2).double().numpy() for part in (module.theta, module.phi, module.g))
        foreground = torch.sigmoid(guess).flatten(2).double().numpy()
        affinity = np.einsum("bci,bcj->bij", theta, phi) / 2
        flows = plain_affinity(affinity, sources.flatten(2).double().numpy(), np.concatenate([foreground, 1 - foreground], axis=1))
        gathered = torch.from_numpy(np.einsum("bij,bcj->bci", flows, g)).float().reshape(x.shape)
        torch.testing.assert_close(found, x + module.out(gathered), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_sources_are_gaussians_about_the_cells_of_the_clicks(sigma):
    """A click in the middle of a cell: the nearest pixels of the cells beside it are 4.5 pixels and so on away."""
    clicks = [WindowClick(20.0, 43.0, True), WindowClick(52.0, 3.0, False)]
    found = tiny(source_sigma=sigma).sources(shown(*clicks)[1], (8, 8))[0]
    for sign, click in enumerate(clicks):
        for row in range(8):
            for col in range(8):
                nearest = [min(max(at, 8.0 * cell), 8.0 * cell + 7) for at, cell in ((click.row, row), (click.col, col))]
                away = math.dist(nearest, (click.row, click.col)) / 8
                assert float(found[sign, row, col]) == pytest.approx(math.exp(-0.5 * (away / sigma) ** 2), rel=1e-3, abs=1e-6)
        assert float(found[sign].max()) == pytest.approx(1.0)


# --- diversified training ---------------------------------------------------------------------------------------------------------------


def test_latent_heads_are_there_in_training_alone():
    network = tiny()
    given_ = shown(WindowClick(30, 30, True))
    assert set(network.train()(*given_).details) == {"guess", "latent"}
    assert network.train()(*given_).details["latent"].shape == (1, 4, 64, 64)
    assert network.eval()(*given_).details is None
    assert tiny(latent_heads=0).to_latent is None
    assert tiny(feature_diffusion=False).diffusion is None


def test_the_loss_is_diversified_training_and_a_first_guess():
    network, target = tiny().train(), square()
    clicks = [WindowClick(30, 30, True), WindowClick(5, 50, False)]
    given_ = shown(*clicks)
    with torch.no_grad():
        output = network(*given_)
        found = network.loss(output, target, given_[1])
        together = torch.cat([output.logits, output.details["latent"]], dim=1)
        guess = cross_entropy(output.details["guess"], torch.nn.functional.avg_pool2d(target, 8))
    assert float(found) == pytest.approx(float(diversified_training(together, target, [clicks]) + 0.4 * guess), rel=1e-6)


def test_only_the_best_latent_head_learns_far_from_clicks():
    network, target = tiny().train(), square()
    given_ = shown()
    output = network(*given_)
    latent = output.details["latent"]
    (gradient,) = torch.autograd.grad(network.loss(output, target, given_[1]), latent)
    errors = [float(cross_entropy(latent[:, i : i + 1].detach(), target)) for i in range(4)]
    assert [bool(gradient[:, i].any()) for i in range(4)] == [i == int(np.argmin(errors)) for i in range(4)]


def test_the_baseline_has_neither_and_is_trained_by_half_a_cross_entropy():
    network, target, given_ = tiny(feature_diffusion=False, latent_heads=0).train(), square(), shown(WindowClick(30, 30, True))
    with torch.no_grad():
        output = network(*given_)
    assert float(network.loss(output, target, given_[1])) == pytest.approx(0.5 * float(cross_entropy(output.logits, target)), rel=1e-6)


# --- the network ------------------------------------------------------------------------------------------------------------------------


def test_a_fresh_encoder_sees_mostly_the_image():
    network = tiny()
    image, maps, previous = shown(WindowClick(30, 30, True))
    with torch.no_grad():
        fused = network.fuse(torch.cat([image, maps, previous], dim=1))
    for channel in range(3):
        assert float(torch.corrcoef(torch.stack([fused[0, channel].flatten(), image[0, channel].flatten()]))[0, 1]) > 0.8


@pytest.mark.parametrize(("size", "file_mib"), [("paper", 89.72), ("resnet50", None)])
def test_the_papers_sizes_have_the_papers_parts(size, file_mib):
    """The authors give no count, but how large their weights of the ResNet-34 are; nothing is published of the ResNet-50."""
    with torch.device("meta"):
        network = CDNet(CDNet.SIZES[size])
    config = network.config
    assert (config.atrous, config.output_stride, config.latent_heads, config.sees_previous) == ((12, 24, 36), 8, 4, False)
    if file_mib is not None:
        assert sum(value.nbytes for value in network.state_dict().values()) / 2**20 == pytest.approx(file_mib, rel=0.05)
    encoder = {"paper": 21_284_672, "resnet50": 23_508_032}[size]  # torchvision's, without the last layer
    assert sum(p.numel() for p in network.encoder.parameters()) == encoder


def test_what_it_cannot_be_is_refused():
    with pytest.raises(WeightsError, match=r"'xception65'.*resnet18, resnet34, resnet50"):
        build("cdnet", {"encoder": "xception65"})
    with pytest.raises(WeightsError, match=r"'disk'.*expected 'gaussian'"):
        CDNetConfig(guidance="disk")


@pytest.mark.slow
@pytest.mark.parametrize("size", ["paper", "resnet50"])
def test_the_papers_sizes_run_forward_and_backward(size):
    torch.manual_seed(0)
    network, given_ = build("cdnet", size=size).train(), shown(WindowClick(30, 30, True), batch=2)
    output = network(*given_)
    (network.loss(output, square(2), given_[1]) + output.iou_logits.mean()).backward()
    assert output.logits.shape == (2, 1, 64, 64)
    assert [k for k, p in network.named_parameters() if p.grad is None or not bool(p.grad.isfinite().all())] == []
