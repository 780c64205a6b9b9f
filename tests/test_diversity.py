"""Latent Diversity: the hypercolumn is one affine projection, hindsight teaches the best mask alone, and the choice learns to choose."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_apprentice.guidance import WindowClick, click_maps
from napari_apprentice.losses import hindsight, iou_distance, ranked_diversity
from napari_apprentice.networks import build
from napari_apprentice.networks.diversity import VGG, Diversity, DiversityConfig
from napari_apprentice.types import WeightsError

TINY = {"masks": 3, "selection": "network", "width": 8, "dilations": [1, 2, 1], "encoder": [4, 4, 8, 8, 8], "groups": 4}
SIZE = 32


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def tiny(seed: int = 0, **changes: object) -> Diversity:
    torch.manual_seed(seed)
    network = build("diversity", TINY | changes)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval()


def shown(*clicks: WindowClick, batch: int = 1, size: int = SIZE) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random pixels and previous masks, and distances to the clicks."""
    generator = torch.Generator().manual_seed(1)
    maps = click_maps(clicks, (size, size), "distance", DiversityConfig().disk_radius_px).expand(batch, -1, -1, -1)
    return torch.randn(batch, 3, size, size, generator=generator), maps, torch.rand(batch, 1, size, size, generator=generator)


CLICKS = (WindowClick(16, 17, True), WindowClick(3, 28, False))


def square(batch: int = 1, size: int = SIZE) -> torch.Tensor:
    target = torch.zeros(batch, 1, size, size)
    target[..., size // 4 : size // 2, size // 4 : size] = 1
    return target


# --- what f sees ------------------------------------------------------------------------------------------------------------------------


def test_features_are_those_of_a_vgg_at_five_resolutions():
    with torch.no_grad():
        found = VGG((2, 3, 4, 5, 6))(torch.randn(1, 3, SIZE, SIZE))
    assert [tuple(x.shape) for x in found] == [
        (1, width, SIZE // 2**stage, SIZE // 2**stage) for stage, width in enumerate((2, 3, 4, 5, 6))
    ]
    assert all(bool((x >= 0).all()) for x in found)


def test_the_encoder_is_laid_out_as_torchvision_does():
    """Places of the convolutions in ``vgg19().features``, and the channels of the hypercolumn."""
    with torch.device("meta"):
        encoder = VGG()
    convolutions = {i: layer.out_channels for i, layer in enumerate(encoder.features) if isinstance(layer, torch.nn.Conv2d)}
    assert list(convolutions) == [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30]
    assert encoder.taps == [3, 8, 13, 22, 31]
    assert sum(convolutions[tap - 1] for tap in encoder.taps) == 1472


@pytest.mark.parametrize("shrink", [1, 4])
def test_projecting_before_upsampling_is_projecting_the_hypercolumn(shrink):
    network = tiny(shrink=shrink)
    image, guidance, previous = shown(*CLICKS)
    clicked = torch.zeros_like(guidance)
    clicked[0, 0, 16, 17] = clicked[0, 1, 3, 28] = 1
    with torch.no_grad():
        size = (SIZE // shrink, SIZE // shrink)
        features = [F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in network.encoder(image)]
        pixels = [F.pixel_unshuffle(x, shrink) for x in (image, torch.cat([clicked, guidance, previous], dim=1))]
        column = torch.cat([*pixels, *features], dim=1)
        weight = torch.cat([network.project.weight, *(part.weight for part in network.project_features)], dim=1)
        masks = F.pixel_shuffle(network.to_masks(network.body(F.conv2d(column, weight, network.project.bias))), shrink)
        torch.testing.assert_close(network(image, guidance, previous).candidates, masks, rtol=1e-4, atol=1e-4)
    assert column.shape[1] == (3 + 2 + 2 + 1) * shrink**2 + sum(TINY["encoder"])


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.builds(WindowClick, st.integers(0, SIZE - 1).map(float), st.integers(0, SIZE - 1).map(float), st.booleans()), max_size=4)
)
def test_clicked_pixels_are_found_in_the_distances(clicks):
    found = tiny()._clicked(shown(*clicks)[1])[0]
    expected = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    for click in clicks:
        expected[int(not click.positive), int(click.row), int(click.col)] = True
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "changes", [{"body": "unet"}, {"body": "unet", "shrink": 1}, {"shrink": 4}, {"groups": 0}, {"sees_previous": False}]
)
def test_every_form_of_it_says_masks_of_the_size_of_the_image(changes):
    given_ = shown(*CLICKS, batch=2)
    network = tiny(**changes).train()
    output = network(*given_)
    assert output.candidates.shape == (2, 3, SIZE, SIZE)
    (network.loss(output, square(2), given_[1]) + output.iou_logits.mean()).backward()
    assert [k for k, p in network.named_parameters() if p.grad is None] == []


def test_what_it_cannot_be_is_refused():
    for name, value in {"selection": "dice", "body": "vit", "shrink": 3, "choice_shrink": 1, "guidance": "disk"}.items():
        with pytest.raises(WeightsError, match=rf"{name} = .*{value}.*expected one of"):
            build("diversity", {name: value})
    with pytest.raises(WeightsError, match="0 masks and 5 encoder stages"):
        build("diversity", {"masks": 0})


# --- the choice -------------------------------------------------------------------------------------------------------------------------


def test_the_mask_is_the_candidate_with_the_best_score():
    with torch.no_grad():
        output = tiny()(*shown(*CLICKS, batch=3))
    for image in range(3):
        best = int(output.scores[image].argmax())
        assert torch.equal(output.logits[image, 0], output.candidates[image, best])
        assert float(output.iou_logits[image]) == float(output.candidate_iou_logits[image, best])
    torch.testing.assert_close(output.scores.exp().sum(1), torch.ones(3))


def test_ranks_and_a_single_mask_need_no_network_to_choose():
    ranked, single = tiny(selection="rank"), tiny(masks=1)
    with torch.no_grad():
        output = ranked(*shown(*CLICKS))
        alone = single(*shown(*CLICKS))
    assert torch.equal(output.logits[:, 0], output.candidates[:, 0])
    assert bool((output.scores.diff(dim=1) < 0).all())
    assert torch.equal(alone.logits, alone.candidates)
    assert not any("selection" in key for network in (ranked, single) for key in network.state_dict())


def test_the_order_in_which_masks_are_shown_is_forgotten_again():
    """A g that scores each mask by its mean gives the same scores in any order."""
    network = tiny(shrink=1).train()
    seen, candidates = torch.zeros(2, 0, SIZE, SIZE), torch.randn(2, 3, SIZE, SIZE) + torch.tensor([0.0, 1.0, 2.0])[:, None, None]
    network._judged = lambda seen, masks: masks.mean((2, 3))
    torch.manual_seed(0)
    drawn = [network._scores(seen, candidates) for _ in range(5)]
    expected = torch.log_softmax(torch.sigmoid(candidates).mean((2, 3)), dim=1)
    for scores in drawn:
        torch.testing.assert_close(scores, expected)


@pytest.mark.parametrize("shrink", [2, 4])
@pytest.mark.parametrize("selection", ["network", "shared"])
def test_the_choice_begins_with_one_convolution_of_all_that_it_sees(selection, shrink):
    """g as the paper has it, a single context aggregation network, made of the same weights."""
    network = tiny(selection=selection, choice_shrink=shrink)
    together = 3 if selection == "network" else 1
    seen, candidates = torch.randn(2, 4 * 8, 16, 16), torch.randn(2, 3, SIZE, SIZE)
    first = torch.nn.Conv2d(shrink**2 * (8 + together), 16, 3, padding=1)
    first.weight.data = torch.cat([network.selection_of_image.weight, network.selection_of_masks.weight], dim=1)
    first.bias.data = network.selection_of_image.bias
    whole = torch.nn.Sequential(first, torch.nn.LeakyReLU(0.2), *network.selection, network.to_scores)
    with torch.no_grad():
        masks = torch.sigmoid(candidates)
        said = [
            whole(torch.cat([F.pixel_unshuffle(seen, shrink // 2), F.pixel_unshuffle(part, shrink)], dim=1)).mean((2, 3))
            for part in (masks.split(1, dim=1) if selection == "shared" else [masks])
        ]
        torch.testing.assert_close(
            network._scores(seen, candidates), torch.log_softmax(torch.cat(said, dim=1), dim=1), rtol=1e-4, atol=1e-4
        )


def test_a_shared_choice_asks_what_a_mask_shows_and_not_where_it_stands():
    network = tiny(selection="shared")
    seen, candidates = torch.randn(2, 4 * 8, 16, 16), torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        scores = network._scores(seen, candidates)
        torch.testing.assert_close(network._scores(seen, candidates.flip(1)), scores.flip(1))
        torch.testing.assert_close(network._scores(seen.flip(0), candidates.flip(0)), scores.flip(0))
    assert float(scores.std(dim=1).min()) > 0


def test_masks_are_shown_in_other_orders_in_training_alone():
    network, given_ = tiny().train(), shown(*CLICKS)
    torch.manual_seed(0)
    drawn = {tuple(network(*given_).scores[0].tolist()) for _ in range(8)}
    assert len(drawn) > 1
    with torch.no_grad():
        still = {tuple(network(*given_).scores[0].tolist()) for _ in range(3)}
    assert len(still) == 1


# --- the loss ---------------------------------------------------------------------------------------------------------------------------


def test_the_loss_is_hindsight_and_the_choice_of_the_best():
    network, target, given_ = tiny(), square(2), shown(*CLICKS, batch=2)
    with torch.no_grad():
        output = network(*given_)
        best = iou_distance(output.candidates, target).argmin(1)
        choice = -torch.stack([output.scores[i, best[i]] for i in range(2)]).mean()
        expected = hindsight(output.candidates, target, [list(CLICKS)] * 2) + choice
        assert float(network.loss(output, target, given_[1])) == pytest.approx(float(expected), rel=1e-6)
        ranked = tiny(selection="rank")
        output = ranked(*given_)
        expected = ranked_diversity(output.candidates, target, [list(CLICKS)] * 2)
        assert float(ranked.loss(output, target, given_[1])) == pytest.approx(float(expected), rel=1e-6)


def test_only_the_best_mask_learns_and_the_choice_teaches_no_mask():
    network, target, given_ = tiny(), square(), shown()
    output = network(*given_)
    (gradient,) = torch.autograd.grad(network.loss(output, target, given_[1]), output.candidates, retain_graph=True)
    best = int(iou_distance(output.candidates, target).argmin(1))
    assert [bool(gradient[0, m].any()) for m in range(3)] == [m == best for m in range(3)]
    of_choice = torch.autograd.grad(output.scores[0, 0], list(network.parameters()), allow_unused=True)
    taught = {k for (k, _), g in zip(network.named_parameters(), of_choice, strict=True) if g is not None and bool(g.any())}
    assert taught == {k for k, _ in network.named_parameters() if k.startswith(("selection", "to_scores"))}


# --- sizes ------------------------------------------------------------------------------------------------------------------------------


def test_the_papers_size_has_the_papers_parts():
    with torch.device("meta"):
        network = Diversity(Diversity.SIZES["paper"])
    dilated = [(c.kernel_size[0], c.dilation[0], c.out_channels) for c in network.body if isinstance(c, torch.nn.Conv2d)]
    assert dilated == [(3, dilation, 64) for dilation in (1, 2, 4, 8, 16, 32, 64, 128, 1)]
    assert (network.to_masks.kernel_size, network.to_masks.out_channels) == ((1, 1), 6)
    assert network.project.in_channels + sum(part.in_channels for part in network.project_features) == 3 + 2 + 2 + 1472
    assert network.selection_of_image.in_channels + network.selection_of_masks.in_channels == 3 + 2 + 2 + 6
    chosen = [
        (c.kernel_size[0], c.dilation[0], c.out_channels)
        for c in (network.selection_of_image, *network.selection)
        if hasattr(c, "dilation")
    ]
    assert chosen == dilated
    assert not any(isinstance(module, torch.nn.GroupNorm) for module in network.modules())


@pytest.mark.slow
def test_the_papers_size_runs_forward_and_backward():
    torch.manual_seed(0)
    network, given_ = build("diversity", size="paper").train(), shown(*CLICKS, size=SIZE)
    output = network(*given_)
    (network.loss(output, square(), given_[1]) + output.iou_logits.mean()).backward()
    assert output.candidates.shape == (1, 6, SIZE, SIZE)
    assert [k for k, p in network.named_parameters() if p.grad is None or not bool(p.grad.isfinite().all())] == []
