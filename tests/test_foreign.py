"""Backbones from the files of others: they fit as a whole, or are refused by the names that do not."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from napari_apprentice.foreign import load_foreign
from napari_apprentice.networks import build
from napari_apprentice.networks._resnet import ResNet
from napari_apprentice.types import WeightsError

TINY = {"width": 8, "aspp_width": 16, "low_width": 8, "atrous": [1, 2], "norm": "batch"}
VIT = {"width": 24, "depth": 2, "heads": 2, "grid": 6, "patch": 8, "hidden": 16, "hidden_heads": 2, "pixel_layers": 1, "pixel_ffn": 16}
VIT |= {"blocks": 1, "ffn": 16, "queries": 3, "groups": 4}


def backbone(depth: int = 18, width: int = 8, seed: int = 5) -> dict[str, Tensor]:
    """As torchvision saves a ResNet."""
    torch.manual_seed(seed)
    tensors = dict(ResNet(depth, width=width).state_dict())
    for key, value in tensors.items():
        if value.is_floating_point():
            tensors[key] = torch.rand_like(value) + 0.1
    return tensors | {"fc.weight": torch.rand(10, 8 * width), "fc.bias": torch.rand(10)}


def vgg19(widths: tuple[int, ...]) -> dict[str, Tensor]:
    """As torchvision saves VGG-19: sixteen convolutions by their places among rectifiers and poolings, and three full layers."""
    tensors, place, entering = {}, 0, 3
    for width, number in zip(widths, (2, 2, 4, 4, 4), strict=True):
        for _ in range(number):
            tensors[f"features.{place}.weight"] = torch.rand(width, entering, 3, 3)
            tensors[f"features.{place}.bias"] = torch.rand(width)
            place, entering = place + 2, width
        place += 1
    return tensors | {f"classifier.{i}.{what}": torch.rand(3) for i in (0, 3, 6) for what in ("weight", "bias")}


def mae(width: int, depth: int, grid: int, patch: int) -> dict[str, Tensor]:
    """As MAE saves the encoder of a ViT."""
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 1 + grid**2, width), "norm.weight": (width,), "norm.bias": (width,)}
    shapes |= {"patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}
    for i in range(depth):
        layers = {"norm1": (width,), "norm2": (width,), "attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        layers |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
        shapes |= {f"blocks.{i}.{name}.weight": shape for name, shape in layers.items()}
        shapes |= {f"blocks.{i}.{name}.bias": shape[:1] for name, shape in layers.items()}
    return {name: torch.rand(shape) for name, shape in shapes.items()}


def deeplab(**config: object) -> nn.Module:
    return build("deeplab", {"encoder": "resnet18", **TINY, **config})


def saved(tensors: object, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


# --- what fits --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18.safetensors", "resnet18.pth"])
def test_a_resnet_fits_the_encoder_and_touches_nothing_else(tmp_path, name):
    network, tensors = deeplab(), backbone()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    assert load_foreign(network, saved(tensors, tmp_path / name)) == "encoder"
    after = network.state_dict()
    for key, value in after.items():
        inner = key.removeprefix("encoder.")
        if inner == "conv1.weight":
            assert torch.equal(value[:, :3], tensors[inner])
            assert not bool(value[:, 3:].any())
        else:
            assert torch.equal(value, tensors[inner] if key.startswith("encoder.") else before[key])


def test_clicks_change_nothing_at_first_and_can_be_learnt(tmp_path):
    network = deeplab().eval()
    load_foreign(network, saved(backbone(), tmp_path / "r.pth"))
    image, maps, previous = torch.randn(1, 3, 32, 32), torch.rand(1, 2, 32, 32), torch.rand(1, 1, 32, 32)
    logits = network(image, maps, previous).logits
    assert torch.equal(logits, network(image, torch.zeros_like(maps), torch.zeros_like(previous)).logits)
    logits.square().mean().backward()
    assert bool(network.encoder.conv1.weight.grad[:, 3:].any())


@pytest.mark.parametrize(
    "wrapped", [lambda t: {"model": t, "epoch": 3}, lambda t: {"state_dict": {f"module.{k}": v for k, v in t.items()}}]
)
def test_wrappings_of_training_scripts_are_taken_off(tmp_path, wrapped):
    network, tensors = deeplab(), backbone()
    load_foreign(network, saved(wrapped(tensors), tmp_path / "r.pth"))
    assert torch.equal(network.encoder.layer4[1].conv2.weight, tensors["layer4.1.conv2.weight"])


def test_files_from_before_batches_were_counted_fit(tmp_path):
    tensors = {k: v for k, v in backbone().items() if "num_batches_tracked" not in k}
    assert load_foreign(deeplab(), saved(tensors, tmp_path / "r.pth")) == "encoder"


def test_vgg_19_fits_latent_diversity(tmp_path):
    network = build("diversity", {"masks": 3, "width": 8, "dilations": [1, 2, 1], "encoder": [4, 4, 8, 8, 8], "groups": 0})
    tensors = vgg19((4, 4, 8, 8, 8))
    assert load_foreign(network, saved(tensors, tmp_path / "vgg19.pth")) == "encoder"
    for name, value in network.encoder.state_dict().items():
        assert torch.equal(value, tensors[name])
    assert "features.30.weight" in network.encoder.state_dict()


def test_mae_fits_adaptive_click_and_its_positions_are_resampled(tmp_path):
    network = build("adaptiveclick", VIT)
    tensors = mae(24, 2, 6, 8)
    path = saved({"model": tensors}, tmp_path / "mae.pth")
    assert load_foreign(network, path) == "vit"
    for name, value in network.vit.state_dict().items():
        torch.testing.assert_close(value, tensors[name][:, 1:] if name == "pos_embed" else tensors[name])
    ramp = torch.arange(6.0)[:, None].expand(6, 6)  # along the rows
    tensors["pos_embed"][:, 1:] = ramp.reshape(1, 36, 1)
    larger = build("adaptiveclick", VIT | {"grid": 12})
    load_foreign(larger, saved({"model": tensors}, path))
    rows = larger.vit.pos_embed.detach().reshape(12, 12, 24)[4:8]
    expected = (torch.arange(4.0, 8.0) + 0.5) / 2 - 0.5  # bicubic interpolation is off by up to 0.05 on a ramp
    torch.testing.assert_close(rows, expected[:, None, None].expand_as(rows), rtol=0, atol=0.05)


# --- what does not ----------------------------------------------------------------------------------------------------------------------


def refused(network: nn.Module, path: Path) -> str:
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_foreign(network, path)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_depth_width_or_normalisation_is_refused_by_name(tmp_path):
    path = saved(backbone(), tmp_path / "r18.safetensors")
    assert "layer1.2.bn1.bias is missing" in refused(deeplab(encoder="resnet34"), path)
    assert "bn1.bias has the shape (8,) in place of (16,)" in refused(deeplab(width=16), path)
    assert "bn1.running_mean is unknown" in refused(deeplab(norm="group"), path)
    deeper = saved(backbone(34), tmp_path / "r34.safetensors")
    assert "layer1.2.bn1.bias is unknown" in refused(deeplab(), deeper)
    assert "and " in refused(deeplab(), deeper)


def test_a_network_without_such_a_backbone_refuses(tmp_path):
    path = saved(backbone(), tmp_path / "r.safetensors")
    said = refused(build("unet", {"widths": [8, 16, 16, 16, 16], "groups": 4}), path)
    assert "does not fit" in said
    said = refused(build("unet", {"widths": [8, 16, 16, 16, 16], "groups": 4}), saved({"x.y": torch.zeros(1)}, tmp_path / "x.pth"))
    assert "x.y" in said


def test_positions_of_no_square_grid_are_refused(tmp_path):
    tensors = mae(24, 2, 6, 8) | {"pos_embed": torch.rand(1, 40, 24)}
    assert "pos_embed has the shape (1, 40, 24) in place of (1, 36, 24)" in refused(
        build("adaptiveclick", VIT), saved(tensors, tmp_path / "m.pth")
    )


def test_values_that_are_not_finite_are_refused(tmp_path):
    tensors = backbone()
    tensors["layer2.0.conv1.weight"][0, 0, 0, 0] = torch.nan
    assert "layer2.0.conv1.weight" in refused(deeplab(), saved(tensors, tmp_path / "r.pth"))


class Harmful:
    """Runs something when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_nothing_is_run_that_a_file_asks_for(tmp_path):
    trace = tmp_path / "ran"
    pickle.loads(pickle.dumps(Harmful(trace)))
    assert trace.exists()  # it would run if it were unpickled
    trace.unlink()
    path = saved({"model": backbone(), "args": Harmful(trace)}, tmp_path / "r.pth")
    assert "cannot be read" in refused(deeplab(), path)
    assert not trace.exists()


def test_damaged_missing_and_other_files_are_refused(tmp_path):
    network = deeplab()
    assert "cannot be read" in refused(network, tmp_path / "none.pth")
    assert "cannot be read" in refused(network, tmp_path / "none.safetensors")
    for name in ("text.pth", "text.safetensors"):
        (tmp_path / name).write_text("not weights")
        assert "cannot be read" in refused(network, tmp_path / name)
    whole = saved(backbone(), tmp_path / "r.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    assert "cannot be read" in refused(network, tmp_path / "half.pth")
    assert "state dict" in refused(network, saved([1, 2], tmp_path / "list.pth"))
    assert "state dict" in refused(network, saved({"epoch": 3}, tmp_path / "epoch.pth"))


def test_files_that_are_something_else_are_refused(tmp_path):
    for text in ("a,b\n1,2\n", "<!DOCTYPE html>", '{"message": "Not Found"}', "Access denied", "404: Not Found", "j0000."):
        (tmp_path / "text.pth").write_text(text)
        assert "cannot be read" in refused(deeplab(), tmp_path / "text.pth")


@pytest.mark.filterwarnings("ignore")  # of torch, about what it does not make any more
@pytest.mark.parametrize(
    "made",
    [
        lambda value: value.to(torch.float8_e4m3fn),
        lambda value: value.to(torch.complex64),
        lambda value: value.to(torch.int8),
        lambda value: value.to_sparse(),
        lambda value: value.to("meta"),
        lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
        lambda value: torch.nested.nested_tensor(list(value)),
    ],
    ids=["float8", "complex", "int8", "sparse", "meta", "quantised", "nested"],
)
def test_values_that_are_no_plain_numbers_are_refused(tmp_path, made):
    tensors = backbone()
    tensors["layer1.0.conv1.weight"] = made(tensors["layer1.0.conv1.weight"])
    assert "in layer1.0.conv1.weight; expected dense ones" in refused(deeplab(), saved(tensors, tmp_path / "r.pth"))


def test_values_that_the_network_cannot_hold_are_refused(tmp_path):
    tensors = backbone()
    tensors["layer1.0.conv1.weight"] = tensors["layer1.0.conv1.weight"].double() * 1e300
    assert "not finite in layer1.0.conv1.weight" in refused(deeplab(), saved(tensors, tmp_path / "r.pth"))


@pytest.mark.parametrize("count", [torch.tensor(5, dtype=torch.int32), torch.zeros(3)])
def test_how_many_batches_were_counted_is_of_no_use(tmp_path, count):
    assert load_foreign(deeplab(), saved(backbone() | {"bn1.num_batches_tracked": count}, tmp_path / "r.pth")) == "encoder"
