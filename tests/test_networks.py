"""Every registered network keeps the promises of the package; the U-Net its own; and a sixth one is a file and a line."""

from __future__ import annotations

import copy
import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from napari_apprentice import training
from napari_apprentice.adaptation import POLICIES, make_policy
from napari_apprentice.guidance import WindowClick, click_maps
from napari_apprentice.networks import NETWORKS, IoUHead, Output, UNet, UNetConfig, build, config_of, configuration
from napari_apprentice.networks._interface import clicks_at
from napari_apprentice.networks.unet import _FAR, Likeness
from napari_apprentice.segmenter import NetworkSegmenter, ZoomConfig
from napari_apprentice.training import read_recipe, train
from napari_apprentice.types import Click, ImageSlice, Lesson, Prompt, WeightsError
from napari_apprentice.weights import LoadedWeights, load_weights, save_weights

ROOT = Path(__file__).parents[1]

TINY = {
    "unet": {"widths": [8, 16, 16, 16, 16], "groups": 4, "likeness": 2},
    "deeplab": {"encoder": "resnet18", "width": 8, "aspp_width": 16, "low_width": 8, "atrous": [1, 2], "sees_previous": True},
    "diversity": {"masks": 3, "width": 8, "dilations": [1, 2, 1], "encoder": [4, 4, 8, 8, 8], "groups": 4},
    "cdnet": {"width": 8, "aspp_width": 16, "low_width": 8, "atrous": [1, 2]},
    "adaptiveclick": {"width": 24, "depth": 1, "heads": 2, "hidden": 16, "hidden_heads": 2, "pixel_layers": 1, "pixel_ffn": 16, "blocks": 1}
    | {"ffn": 16, "queries": 3, "groups": 4},
    "latefusion": {"widths": [8, 16, 16], "blocks": [1, 1, 1], "light": [8, 16], "light_blocks": [1, 1], "groups": 4},
}
SMALL_MB = 25  # of float32


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def tiny(name: str, seed: int = 0) -> nn.Module:
    """A small network whose every weight matters (fresh residual branches are zero)."""
    torch.manual_seed(seed)
    found = build(name, TINY[name])
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return found.eval()


@pytest.fixture(params=sorted(NETWORKS))
def network(request) -> nn.Module:
    return tiny(request.param)


def inputs(batch: int, height: int = 64, width: int = 64, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(batch, 3, height, width, generator=generator)
    guidance = (torch.rand(batch, 2, height, width, generator=generator) > 0.99).float()
    return image, guidance, torch.rand(batch, 1, height, width, generator=generator)


def clicked(network: nn.Module, batch: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs with a positive and a negative click, as the network is shown them."""
    image, _, previous = inputs(batch, seed=seed)
    clicks = [WindowClick(30.0 + seed, 34.0, True), WindowClick(5.0, 50.0 + seed, False)]
    maps = click_maps(clicks, (64, 64), network.config.guidance, network.config.disk_radius_px)
    return image, maps.expand(batch, -1, -1, -1), previous


def targets(batch: int, height: int = 64, width: int = 64) -> torch.Tensor:
    """A disk in every image."""
    rows, cols = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return ((rows - height / 2) ** 2 + (cols - width / 2) ** 2 < (height / 4) ** 2).float().expand(batch, 1, -1, -1)


def objective(network: nn.Module, output: Output, guidance: torch.Tensor) -> torch.Tensor:
    """What training brings down: the network's own loss if it has one, and something that the estimated IoU comes into."""
    own = network.loss(output, targets(len(output.logits)), guidance) if hasattr(network, "loss") else output.logits.square().mean()
    return own + output.iou_logits.square().mean()


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


def test_candidates_come_with_scores_and_the_best_of_them_or_their_sum_is_the_mask(network):
    with torch.no_grad():
        output = network(*inputs(2))
    if output.candidates is None:
        assert output.scores is None
        assert output.candidate_iou_logits is None
        return
    assert output.candidates.shape[::2] == (2, 64)
    assert output.scores.shape == output.candidates.shape[:2]
    assert output.candidate_iou_logits.shape == output.scores.shape


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
        features = network.encode(image)
        assert isinstance(features, torch.Tensor)
        assert torch.equal(network(image, guidance, previous).logits, network.decode(features, guidance, previous).logits)


@pytest.mark.parametrize("which", [0, 1, 2], ids=["image", "guidance", "previous"])
def test_every_input_matters(network, which):
    given = list(inputs(1))
    with torch.no_grad():
        plain = network(*given).logits
        given[which] = torch.roll(given[which], 7, dims=3)
        assert float((network(*given).logits - plain).abs().max()) > 1e-3


def reached_by(value: torch.Tensor, network: nn.Module) -> set[str]:
    parameters = dict(network.named_parameters())
    gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True, retain_graph=True)
    return {k for k, g in zip(parameters, gradients, strict=True) if g is not None and bool(g.any())}


def test_judging_the_mask_sends_no_gradient_into_it(network):
    network.train()
    given = clicked(network, 1)
    output = network(*given)
    judging = reached_by(output.iou_logits.sum(), network)
    assert judging
    assert all("iou" in name for name in judging)
    taught = reached_by(output.logits.sum(), network)
    if hasattr(network, "loss"):  # beside the mask, also what only training knows
        taught |= reached_by(network.loss(output, targets(1), given[1]), network)
    assert all("iou" in name for name in dict(network.named_parameters()).keys() - taught)


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


def test_what_a_unet_must_not_look_at_changes_nothing():
    torch.manual_seed(0)
    image, guidance, previous = inputs(1)
    for sees, same in ((True, False), (False, True)):
        found = build("unet", TINY["unet"] | {"sees_previous": sees}).eval()
        with torch.no_grad():
            assert torch.equal(found(image, guidance, previous).logits, found(image, guidance, 1 - previous).logits) is same


@pytest.mark.parametrize("seed", range(5))
def test_likeness_is_the_distance_to_the_nearest_of_what_was_clicked(seed):
    """Compared with each image and space on its own, by plain loops over the cells that hold clicks."""
    torch.manual_seed(seed)
    likeness = Likeness(5, 3, 2).eval()
    features, guidance = torch.randn(2, 5, 8, 12), (torch.rand(2, 2, 8, 12) > 0.97).float()
    guidance[0, 1] = 0  # no negative click in the first image
    guidance[:, 0, 3, 4] = 1
    found = likeness.embed(features)
    places = found.reshape(2 * Likeness.SPACES, -1, 8 * 12)
    for sign in (0, 1):
        distances = likeness._distance(found, places, guidance[:, sign : sign + 1])
        for image in range(2):
            for space in range(Likeness.SPACES):
                of_space, nearest = found[image, 2 * space : 2 * space + 2], torch.full((8, 12), _FAR)
                for row in range(0, 8, 2):
                    for col in range(0, 12, 2):
                        weight = guidance[image, sign, row : row + 2, col : col + 2]
                        if weight.any():
                            mean = (of_space[:, row : row + 2, col : col + 2] * weight).sum((1, 2)) / weight.sum()
                            nearest = torch.minimum(nearest, (of_space - mean[:, None, None]).square().sum(0))
                assert torch.allclose(distances[image, space], nearest.flatten(), atol=1e-4)


def test_what_looks_exactly_like_what_was_clicked_is_as_like_as_can_be():
    likeness = Likeness(3, 1, 2).requires_grad_(False)
    pixels = torch.zeros(1, 3, 16, 16)
    pixels[:, :, :, 8:] = 4.0
    clicked = torch.zeros(1, 1, 16, 16)
    clicked[..., 2:4, 2:4] = 1
    found = likeness.embed(pixels)
    distances = likeness._distance(found, found.reshape(Likeness.SPACES, -1, 256), clicked).reshape(-1, 16, 16)
    assert torch.allclose(distances[:, :, :8], torch.zeros(()), atol=1e-4)
    assert float(distances[:, :, 8:].min()) > 0.01


def test_likeness_is_the_same_in_mixed_precision():
    likeness = Likeness(5, 3, 2).requires_grad_(False)
    torch.nn.init.normal_(likeness.mix.weight)
    features, clicked = torch.randn(2, 5, 8, 12), (torch.rand(2, 2, 16, 24) > 0.9).float()
    expected = likeness(features, clicked)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(likeness(features, clicked), expected)


def test_a_network_that_is_given_likeness_says_what_it_said_before():
    plain = tiny("unet", 3)
    bare = build("unet", TINY["unet"] | {"likeness": 0}).eval()
    bare.load_state_dict({k: v for k, v in plain.state_dict().items() if k in bare.state_dict()})
    grown = build("unet", TINY["unet"]).eval()
    training._go_on_from(grown, bare, "before.toml")
    with torch.no_grad():
        assert torch.equal(grown(*inputs(2)).logits, bare(*inputs(2)).logits)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_small_size_is_the_default_and_small(name):
    sizes = NETWORKS[name].SIZES
    assert configuration(name) == sizes["small"] == type(sizes["small"])()
    assert configuration(name, {"disk_radius_px": 7.0}, "small") == replace(sizes["small"], disk_radius_px=7.0)
    assert 4 * sum(p.numel() for p in build(name).parameters()) <= SMALL_MB * 1e6


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_size_has_values_that_a_file_can_hold(name):
    for size, config in NETWORKS[name].SIZES.items():
        assert configuration(name, size=size) is not None
        assert configuration(name, {k: list(v) if isinstance(v, tuple) else v for k, v in vars(config).items()}) == config


def test_the_page_of_the_networks_has_all_of_them_and_their_sizes():
    rows = re.findall(
        r"^\| `(\w+)` \| `(\w+)` \| ([\d.]+) \| ([\d.]+) \|", (ROOT / "docs" / "networks.md").read_text("utf-8"), re.MULTILINE
    )
    found = []
    with torch.device("meta"):
        for name, network_class in NETWORKS.items():
            for size, config in network_class.SIZES.items():
                count = sum(p.numel() for p in network_class(config).parameters())
                found.append((name, size, f"{count / 1e6:.2f}", f"{4 * count / 2**20:.1f}"))
    assert sorted(rows) == sorted(found)


def test_what_is_unknown_is_refused():
    with pytest.raises(WeightsError, match=r"'vnet'.*expected one of .*unet"):
        build("vnet")
    with pytest.raises(WeightsError, match=r"depth.*expected only .*widths"):
        build("unet", {"depth": 3})
    with pytest.raises(WeightsError, match=r"'huge'.*expected one of small"):
        build("unet", size="huge")
    with pytest.raises(WeightsError, match=r"Linear.*unet"):
        config_of(nn.Linear(1, 1))

    class Other(UNet):
        pass

    with pytest.raises(WeightsError, match="Other"):
        config_of(Other(UNetConfig(widths=(4, 4), blocks=(1, 1), groups=2)))


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_fresh_network_is_undecided_about_every_pixel(name):
    torch.manual_seed(0)
    with torch.no_grad():
        logits = build(name, TINY[name])(*inputs(4)).logits
    assert 0.0 < float(logits.abs().mean()) < 3.0


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_weight_learns(name):
    """After one step every parameter has a gradient: no branch is switched off for good."""
    torch.manual_seed(0)
    network = build(name, TINY[name])
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    for seed in range(2):
        given = clicked(network, 2, seed)
        optimiser.zero_grad()
        objective(network, network(*given), given[1]).backward()
        optimiser.step()
    assert [key for key, value in network.named_parameters() if value.grad is None or not bool(value.grad.any())] == []


def test_clicks_are_found_where_they_are_marked():
    clicked = torch.zeros(2, 2, 4, 5, dtype=torch.bool)
    clicked[0, 0, 1, 2] = clicked[0, 1, 3, 4] = clicked[1, 1, 0, 0] = True
    assert clicks_at(clicked) == [[(1.0, 2.0, True), (3.0, 4.0, False)], [(0.0, 0.0, False)]]


def test_the_judge_tells_masks_apart_and_not_by_their_size_in_pixels():
    torch.manual_seed(0)
    head, features = IoUHead(4), torch.randn(1, 4, 8, 8)
    mask = 4 * targets(1, 32, 32) - 2
    with torch.no_grad():
        plain = head(features, mask)
        torch.testing.assert_close(plain, head(features, mask.repeat_interleave(2, 2).repeat_interleave(2, 3)), rtol=1e-4, atol=1e-4)
        assert not torch.equal(plain, head(features, -mask))


# --- at work ----------------------------------------------------------------------------------------------------------------------------


def picture() -> tuple[ImageSlice, np.ndarray]:
    rows, cols = np.indices((70, 80))
    mask = (rows - 35) ** 2 + (cols - 40) ** 2 <= 196
    noise = np.random.default_rng(0).integers(0, 60, (1, 70, 80))
    return ImageSlice((noise + 120 * mask).astype(np.uint8)), mask


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "none"])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_learns_by_every_policy_and_forgets_bit_for_bit(name, policy):
    segmenter = NetworkSegmenter(LoadedWeights(tiny(name), name, {}, "0"), "cpu", ZoomConfig(size=32, first_size=32, diffusion=0.0))
    rates = {"mid_rate": 1e-3, "post_rate": 1e-3, "ia_rate": 1e-3, "sa_rate": 1e-3, "ia_steps": 2, "post_rounds": 1}
    chosen = replace(make_policy(policy), size=32, gate_margin=float("inf"), **rates)
    pixels, mask = picture()
    clicks = (Click((35, 40)), Click((28, 44)))
    fresh, before = segmenter.snapshot(), {k: v.detach().clone() for k, v in segmenter.network.named_parameters()}
    first = segmenter.predict(pixels, Prompt(clicks[:1]))
    assert first.mask.shape == (70, 80)
    second = chosen.on_click(segmenter, pixels, Prompt(clicks, chosen.on_click(segmenter, pixels, Prompt(clicks[:1]))))
    assert second.mask[28, 44]
    report = chosen.on_accept(segmenter, Lesson(pixels, clicks, mask, "case"))
    if {"sa", "pi"} & set(policy.split("+")):
        assert report.accepted
        assert any(not torch.equal(before[k], v) for k, v in segmenter.network.named_parameters())
    segmenter.restore(fresh)
    assert all(torch.equal(before[k], v) for k, v in segmenter.network.named_parameters())
    assert np.array_equal(segmenter.predict(pixels, Prompt(clicks[:1])).logits, first.logits)


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"unet"}))
def test_every_network_has_a_recipe_on_the_data_of_the_default(name):
    found, default = read_recipe(ROOT / "recipes" / f"{name}.toml"), read_recipe(ROOT / "recipes" / "default.toml")
    assert found.network == name
    assert configuration(name, found.config, found.network_size) == configuration(name)
    assert found.sets == default.sets


def eight_pictures(size: int = 64) -> tuple[torch.Tensor, torch.Tensor, list[list[WindowClick]]]:
    """Noisy ellipses, their masks, and a click in the middle of each."""
    rng = np.random.default_rng(0)
    rows, cols = np.mgrid[:size, :size]
    images, masks, clicks = [], [], []
    for _ in range(8):
        (row, col), (long, short), turn = rng.uniform(26, 38, 2), rng.uniform(14, 24, 2), rng.uniform(0, 3)
        along = (rows - row) * np.cos(turn) + (cols - col) * np.sin(turn)
        across = (cols - col) * np.cos(turn) - (rows - row) * np.sin(turn)
        ellipse = (along / long) ** 2 + (across / short) ** 2 <= 1
        pixels = rng.normal(0, 0.3, (3, size, size)) + 1.5 * ellipse
        images.append((pixels - pixels.mean()) / pixels.std())
        masks.append(ellipse[None])
        clicks.append([WindowClick(float(round(row)), float(round(col)), True)])
    return torch.from_numpy(np.stack(images)).float(), torch.from_numpy(np.stack(masks)).float(), clicks


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps", "rate"), [("cdnet", 90, 3e-3), ("diversity", 100, 4e-3)])
def test_the_small_size_learns_eight_pictures_by_heart(name, steps, rate):
    """IoU@1 above 0.95 in less than a minute of one core, by the network's own loss."""
    image, target, clicks = eight_pictures()
    torch.manual_seed(0)
    network = build(name).train()
    config, nothing = network.config, torch.zeros_like(target)
    maps = torch.stack([click_maps(c, (64, 64), config.guidance, config.disk_radius_px) for c in clicks])
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, betas=(0.9, 0.99))
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * min((step + 1) / 10, 1) * (1 + np.cos(np.pi * step / steps)) / 2
        optimiser.zero_grad()
        network.loss(network(image, maps, nothing), target, maps).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
    with torch.no_grad():
        found, truth = network.eval()(image, maps, nothing).logits > 0, target > 0.5
    assert float(((found & truth).sum((1, 2, 3)) / (found | truth).sum((1, 2, 3))).mean()) > 0.95


# --- a sixth network --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The network of ``docs/networks.md``, as a file of its own."""
    text = (ROOT / "docs" / "networks.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    path = tmp_path / "toy.py"
    path.write_text(blocks[0], "utf-8")
    spec = importlib.util.spec_from_file_location("toy_network", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "toy_network", module)
    spec.loader.exec_module(module)
    return module


def test_a_sixth_network_is_one_file_and_one_line(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(NETWORKS, "toy", toy.Toy)  # the line
    monkeypatch.setattr(training, "_held_out_batch", lambda *args, **kwargs: (torch.randn(2, 3, 32, 32), targets(2, 32, 32)))
    recipe, out = tmp_path / "toy.toml", tmp_path / "toy.safetensors"
    recipe.write_text('network = "toy"\nsteps = 3\nsizes = [[32, 2]]\nsynthetic = 1.0\nworkers = 0\nimportance = 2\nwarmup = 1\n')
    train(recipe, None, out, device="cpu")
    loaded = load_weights(out)
    assert loaded.name == "toy"
    assert loaded.importance.keys() == dict(loaded.network.named_parameters()).keys()
    segmenter = NetworkSegmenter(loaded, "cpu", ZoomConfig(size=32, first_size=32))
    pixels, mask = picture()
    prompt = Prompt((Click((35, 40)),))
    first = segmenter.predict(pixels, prompt)
    policy = replace(make_policy("mi+pi"), size=32, gate_margin=float("inf"))
    assert policy.on_accept(segmenter, Lesson(pixels, prompt.clicks, mask, "case")).accepted
    assert not np.array_equal(segmenter.predict(pixels, prompt).logits, first.logits)
    assert load_weights(save_weights(segmenter.network, out)).name == "toy"


def test_a_size_that_a_network_does_not_have_is_refused_by_its_recipe(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(NETWORKS, "toy", toy.Toy)
    recipe = tmp_path / "toy.toml"
    recipe.write_text('network = "toy"\nnetwork_size = "wide"\nsizes = [[32, 2]]\n')
    assert read_recipe(recipe).network_size == "wide"
    recipe.write_text('network = "toy"\nnetwork_size = "huge"\nsizes = [[32, 2]]\n')
    with pytest.raises(WeightsError, match=r"'huge'.*small, wide"):
        read_recipe(recipe)
