"""Weights of others: backbones from files that a user has.

Read are state dicts as torchvision names those of its ResNets and of VGG-19, and as MAE (He et al., 2022) and timm name those of a ViT,
from safetensors or from ``torch.save``; nothing but tensors is ever unpickled. A network that has such a backbone gets its weights, all or
none:

- what was made for classification or reconstruction (heads, decoders, class and mask tokens) is left out;
- a first convolution that sees more than the three colours gets zeros for the others, so that it begins by seeing what it saw before;
- the positions of a ViT are resampled to its grid.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from napari_apprentice.types import WeightsError

__all__ = ["load_foreign"]

_LEFT_OUT = re.compile(r"fc\.|classifier\.|features\.3[24]\.|head\.|fc_norm\.|decoder_|(cls|mask)_token$")
"""What a backbone here does not have: torchvision's and timm's heads, VGG-19 behind conv5_2, the decoder of MAE."""
_COUNT = "num_batches_tracked"  # in torchvision's files of some years; of no use, and not read
_REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def load_foreign(network: nn.Module, path: Path | str) -> str:
    """Fill the backbone of ``network`` from a file; the name of that part of the network.

    Raises
    ------
    WeightsError : the file cannot be read, or it does not fit any part of the network
    """
    found = _read(Path(path))
    name, part = _part(network, found, path)
    expected = part.state_dict()
    if odd := [key for key, value in found.items() if key in expected and not _is_plain(value)]:
        raise WeightsError(
            f"{path} holds {_kind(found[odd[0]])} values in {odd[0]}; expected dense ones of float16, bfloat16, float32 or float64"
        )
    fitted = {key: _fitted(key, value, expected[key].shape) for key, value in found.items() if key in expected}
    unknown = {key for key in found if key not in expected and not _LEFT_OUT.match(key)}
    missing = {key for key in expected if key not in found}
    misshapen = {key for key, value in fitted.items() if value.shape != expected[key].shape}
    if wrong := sorted(key for key in unknown | missing | misshapen if not key.endswith(_COUNT)):
        shown = ", ".join(_said(key, found, expected) for key in wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise WeightsError(f"{path} does not fit {name!r} of this {type(network).__name__}: {shown}")
    if broken := [key for key, value in fitted.items() if not bool(value.to(expected[key].dtype).isfinite().all())]:
        raise WeightsError(f"{path} holds values that are not finite in {broken[0]}; expected finite weights")
    part.load_state_dict(fitted, strict=False)
    return name


def _read(path: Path) -> dict[str, Tensor]:
    """The state dict of a file, without the wrappings that training scripts put around it."""
    try:
        values: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch.load raises on damaged and on other files has no common class
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} cannot be read as weights ({said}); expected safetensors, or tensors alone from torch.save") from error
    for wrapping in ("model", "state_dict"):
        if isinstance(values, Mapping) and isinstance(values.get(wrapping), Mapping):
            values = values[wrapping]
    if not isinstance(values, Mapping) or not values or not all(isinstance(v, Tensor) for v in values.values()):
        raise WeightsError(f"{path} holds {type(values).__name__} values that are not all tensors; expected a state dict")
    return {str(key).removeprefix("module."): value for key, value in values.items() if not str(key).endswith(_COUNT)}


def _is_plain(value: Tensor) -> bool:
    """Whether a tensor holds real floating-point numbers side by side in memory."""
    return value.dtype in _REAL and value.layout == torch.strided and value.device.type == "cpu" and not value.is_nested


def _kind(value: Tensor) -> str:
    """Layout, place and type of a tensor in words."""
    layout = "nested" if value.is_nested else value.layout
    return f"{layout} {value.device.type} {value.dtype}".replace("torch.", "")


def _part(network: nn.Module, found: Mapping[str, Tensor], path: Path | str) -> tuple[str, nn.Module]:
    """The part of the network that shares most names with the file; of several the smallest."""
    shared = {name: (len(set(part.state_dict()) & set(found)), -len(part.state_dict())) for name, part in network.named_modules()}
    name = max(shared, key=lambda name: shared[name])
    if not shared[name][0]:
        some = ", ".join(list(found)[:3])
        raise WeightsError(f"{path} holds {some} and so on, and no part of this {type(network).__name__} has such names")
    return name, network.get_submodule(name)


def _fitted(key: str, value: Tensor, shape: torch.Size) -> Tensor:
    """``value`` as a part of the network would have it, where that is possible; else as it is."""
    if key == "pos_embed" and value.ndim == len(shape) == 3 and value.shape[2] == shape[2]:
        return _resampled(value.float(), shape[1])
    stem = value.ndim == len(shape) == 4 and value.shape[1] == 3 < shape[1] and value.shape[0] == shape[0] and value.shape[2:] == shape[2:]
    if not stem:
        return value
    return torch.cat([value, value.new_zeros(shape[0], shape[1] - 3, *shape[2:])], dim=1)


def _resampled(positions: Tensor, count: int) -> Tensor:
    """(1, count, d) from positions (1, n, d) of a square grid, or of a class token and a square grid (1, 1 + n, d)."""
    side, new = math.isqrt(positions.shape[1]), math.isqrt(count)
    if new**2 != count or positions.shape[1] - side**2 not in (0, 1):
        return positions
    grid = positions[:, -(side**2) :].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    return F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)


def _said(key: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """What is wrong with a name."""
    if key not in found:
        return f"{key} is missing"
    if key not in expected:
        return f"{key} is unknown"
    return f"{key} has the shape {tuple(found[key].shape)} in place of {tuple(expected[key].shape)}"
