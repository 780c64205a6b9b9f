"""DeepLabV3+ and its encoders: sizes, strides, what dilation keeps, batches of one, and that it can learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from napari_apprentice.guidance import WindowClick, click_maps
from napari_apprentice.losses import normalised_focal, soft_dice
from napari_apprentice.networks import build
from napari_apprentice.networks._resnet import ResNet, normalisation
from napari_apprentice.networks._xception import Xception
from napari_apprentice.networks.deeplab import DeepLab, DeepLabConfig
from napari_apprentice.samples import draw_sample
from napari_apprentice.shapes import deepest
from napari_apprentice.synthetic import scene
from napari_apprentice.types import WeightsError

TINY = {"width": 8, "aspp_width": 16, "low_width": 8, "atrous": (1, 2)}
ENCODERS = ("resnet18", "resnet34", "resnet50", "xception65")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def unsettled(network: nn.Module) -> nn.Module:
    """In evaluation mode, with normalisations that do something."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return network.eval()


def inputs(batch: int, size: int = 32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(batch, 3, size, size, generator=generator)
    maps = (torch.rand(batch, 2, size, size, generator=generator) > 0.99).float()
    return image, maps, torch.rand(batch, 1, size, size, generator=generator)


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


# --- sizes ------------------------------------------------------------------------------------------------------------------------------


def test_the_papers_size_has_its_parameters():
    """A public DeepLabV3+ with Xception-65 has 41.26 M with 21 classes; the papers state no count."""
    with torch.device("meta"):
        network = DeepLab(DeepLab.SIZES["paper"])
    twenty_classes = 20 * (network.config.aspp_width + 1)
    assert count(network) + twenty_classes == pytest.approx(41.26e6, rel=0.01)
    assert network.encoder(torch.empty(1, 5, 64, 64, device="meta"))[0].shape == (1, 256, 16, 16)


@pytest.mark.parametrize(("depth", "published", "width"), [(18, 11_689_512, 512), (34, 21_797_672, 512), (50, 25_557_032, 2048)])
def test_resnets_have_the_published_number_of_parameters(depth, published, width):
    """torchvision's, without the layer from ``width`` features and a bias to a thousand classes."""
    with torch.device("meta"):
        assert count(ResNet(depth)) == published - 1000 * (width + 1)


def test_the_small_size_can_be_shipped():
    with torch.device("meta"):
        network = DeepLab()
    assert 4 * count(network) < 25e6
    assert not list(network.buffers())


def test_the_papers_sizes_are_the_papers():
    for size in ("paper", "resnet34", "resnet50"):
        config = DeepLab.SIZES[size]
        assert (config.output_stride, config.atrous, config.guidance, config.disk_radius_px) == (8, (12, 24, 36), "disk", 3.0)
        with torch.device("meta"):
            network = DeepLab(config)
        entering = next(m for m in network.encoder.modules() if isinstance(m, nn.Conv2d))
        assert entering.in_channels == 5
        dilations = [m.dilation[0] for m in network.aspp.atrous.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        assert dilations == [12, 24, 36]


@pytest.mark.slow
def test_the_papers_size_runs_forward_and_backward_on_one_image():
    torch.manual_seed(0)
    network = DeepLab(DeepLab.SIZES["paper"]).eval()
    output = network(*inputs(1, 16))
    assert output.logits.shape == (1, 1, 16, 16)
    (output.logits.mean() + output.iou_logits.mean()).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.isfinite().all())] == []


# --- encoders ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [18, 34, 50])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_features_have_the_strides_and_widths_that_they_say(depth, stride):
    network = ResNet(depth, in_channels=4, output_stride=stride, width=8)
    with torch.no_grad():
        features = network.eval()(torch.zeros(1, 4, 64, 96))
    assert [f.shape[1] for f in features] == list(network.widths)
    assert [64 // f.shape[2] for f in features] == [96 // f.shape[3] for f in features] == [min(s, stride) for s in (4, 8, 16, 32)]


@pytest.mark.parametrize("depth", [18, 34, 50])
@pytest.mark.parametrize("stride", [8, 16])
def test_a_dilated_resnet_says_what_the_strided_one_says_where_that_looks(depth, stride):
    torch.manual_seed(depth)
    strided = unsettled(ResNet(depth, output_stride=32, width=8)).double()
    dilated = ResNet(depth, output_stride=stride, width=8).double().eval()
    dilated.load_state_dict(strided.state_dict())
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        for sparse, dense in zip(strided(image), dilated(image), strict=True):
            step = dense.shape[2] // sparse.shape[2]
            torch.testing.assert_close(dense[:, :, ::step, ::step], sparse)


def test_a_dilated_xception_says_what_the_strided_one_says_where_that_looks():
    torch.manual_seed(0)
    strided = unsettled(Xception(output_stride=16, width=4)).double()
    dilated = Xception(output_stride=8, width=4).double().eval()
    dilated.load_state_dict(strided.state_dict())
    image = torch.randn(1, 3, 48, 64, dtype=torch.float64)
    with torch.no_grad():
        (low, sparse), (low_too, dense) = strided(image), dilated(image)
    assert low.shape[2:] == (12, 16)
    assert (sparse.shape[2:], dense.shape[2:]) == ((3, 4), (6, 8))
    torch.testing.assert_close(low_too, low)
    torch.testing.assert_close(dense[:, :, ::2, ::2], sparse)


def test_xception_is_65_layers_deep():
    """As its name counts them: 21 blocks of three separable convolutions and the two of the stem."""
    with torch.device("meta"):
        network = Xception()
    depthwise = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert len(depthwise) == 63 == 21 * 3
    assert sum(isinstance(m, nn.Conv2d) and m.groups == 1 and m.kernel_size == (3, 3) for m in network.modules()) == 2


def test_groups_of_a_normalisation_are_as_many_as_leave_eight_channels():
    assert [normalisation("group", n).num_groups for n in (8, 16, 24, 40, 64, 256, 728, 91)] == [1, 2, 2, 4, 8, 32, 8, 1]
    assert isinstance(normalisation("batch", 8), nn.BatchNorm2d)


def test_what_is_unknown_is_refused():
    with pytest.raises(WeightsError, match=r"ResNet-101.*expected 18, 34 or 50"):
        ResNet(101)
    with pytest.raises(WeightsError, match=r"stride 4.*8, 16 or 32"):
        ResNet(18, output_stride=4)
    with pytest.raises(WeightsError, match=r"stride 32.*8 or 16"):
        Xception(output_stride=32)
    with pytest.raises(WeightsError, match=r"'layer'.*'batch' or 'group'"):
        build("deeplab", {"norm": "layer"})
    with pytest.raises(WeightsError, match=r"'vgg'.*xception65.*resnet34"):
        build("deeplab", {"encoder": "vgg"})


# --- the network ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_every_encoder_makes_masks_of_the_size_of_the_image(encoder, norm):
    network = DeepLab(DeepLabConfig(encoder, norm=norm, **TINY)).eval()
    with torch.no_grad():
        output = network(*inputs(2, 40))
    assert output.logits.shape == (2, 1, 40, 40)
    assert output.iou_logits.shape == (2,)


@pytest.mark.parametrize("separable", [True, False])
def test_in_evaluation_mode_batches_normalise_nothing_that_they_hold(separable):
    """What an adapting model relies on: one image says what it says among others, and a step changes parameters alone."""
    torch.manual_seed(0)
    network = unsettled(DeepLab(DeepLabConfig("resnet18", norm="batch", separable=separable, **TINY)))
    both = inputs(2)
    with torch.no_grad():
        together = network(*both).logits
        apart = torch.cat([network(*(x[i : i + 1] for x in both)).logits for i in range(2)])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
    remembered = {k: v.clone() for k, v in network.named_buffers()}
    assert remembered
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    network(*(x[:1] for x in both)).logits.square().mean().backward()
    optimiser.step()
    assert all(torch.equal(v, remembered[k]) for k, v in network.named_buffers())


def test_batches_are_remembered_in_training_mode():
    network = DeepLab(DeepLabConfig("resnet18", norm="batch", **TINY)).train()
    before = network.encoder.bn1.running_mean.clone()
    network(*inputs(2))
    assert not torch.equal(network.encoder.bn1.running_mean, before)


def test_the_previous_mask_is_seen_only_where_the_configuration_says_so():
    image, maps, previous = inputs(1)
    for sees in (True, False):
        torch.manual_seed(0)
        network = DeepLab(DeepLabConfig("resnet18", sees_previous=sees, **TINY)).eval()
        with torch.no_grad():
            same = torch.equal(network(image, maps, previous).logits, network(image, maps, 1 - previous).logits)
        assert same is not sees


def test_the_pyramid_pools_the_whole_map():
    """A change in one corner reaches the other one, further than all dilations do."""
    torch.manual_seed(0)
    network = DeepLab(DeepLabConfig("resnet18", **TINY)).eval()
    x = torch.randn(1, network.encoder.widths[-1], 20, 20)
    changed = x.clone()
    changed[..., 0, 0] += 100
    with torch.no_grad():
        whole = network.aspp.whole(x.mean((2, 3), keepdim=True)), network.aspp.whole(changed.mean((2, 3), keepdim=True))
        assert not torch.equal(*whole)
        assert not torch.equal(network.aspp(x)[..., -1, -1], network.aspp(changed)[..., -1, -1])


# --- learning ---------------------------------------------------------------------------------------------------------------------------


def eight_objects(size: int) -> tuple[Tensor, Tensor, list[WindowClick]]:
    """Images (8, 3, h, w) and masks (8, 1, h, w) of procedural scenes, and a click in the middle of each object."""
    rng = np.random.default_rng(0)
    drawn = (draw_sample(rng, scene(number), size, vary=False) for number in range(100))
    samples = [sample for _, sample in zip(range(8), (s for s in drawn if s is not None), strict=False)]
    clicks = [WindowClick(*map(float, deepest(s.target[0].numpy() > 0.5)), True) for s in samples]
    return torch.stack([s.image for s in samples]), torch.stack([s.target for s in samples]), clicks


@pytest.mark.slow
def test_the_small_size_learns_eight_images_by_heart():
    """IoU@1 above 0.95 in the mean; 25 s on one core."""
    torch.manual_seed(0)
    image, target, clicks = eight_objects(48)
    network = build("deeplab")
    maps = torch.stack([click_maps([c], (48, 48), network.config.guidance, network.config.disk_radius_px) for c in clicks])
    nothing = torch.zeros_like(target)
    optimiser, steps = torch.optim.Adam(network.parameters()), 90
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps, pct_start=0.2)
    for _ in range(steps):
        output = network(image, maps, nothing)
        optimiser.zero_grad()
        (normalised_focal(output.logits, target) + soft_dice(output.logits, target)).backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        found, truth = network.eval()(image, maps, nothing).logits > 0, target > 0.5
    assert len(found) == 8
    iou = (found & truth).sum((1, 2, 3)) / (found | truth).sum((1, 2, 3))
    assert float(iou.mean()) > 0.95
