"""The networks, one file each, behind one small interface.

A network is a `torch.nn.Module` with

- ``SIZES``: name -> configuration, a frozen dataclass of plain values; "small" is among them, and holds the defaults of its class;
- ``config``: the configuration that it was built with, and that rebuilds it through `build`;
- ``encode(image) -> features``: what depends on the image alone, one tensor (cached between clicks);
- ``decode(features, guidance, previous) -> Output``: what depends on the clicks;
- perhaps ``recollect(image, guidance, target) -> examples``, which ``decode`` then takes as its fourth argument: objects whose masks are
  known, and ``config.recall`` above 0 where it does (see `unet.UNet`);
- perhaps ``ENCODER``: the names of its parts on whose parameters alone the features depend that its decoder begins with;
- perhaps ``loss(output, target, guidance) -> Tensor``: its own training objective, in place of the one that a recipe names.

All tensors are ``(B, C, h, w)`` float32 at the working size, which must be a multiple of ``config.stride``. ``config.guidance`` and
``config.disk_radius_px`` name the click encoding that the network was made for (see `guidance.click_maps`). Nothing depends on the other
images of a batch, and nothing but parameters is learnt: a step on a batch of one is safe, and training says what inference says.

Adding a network means one file here, its import and one line in `NETWORKS`; ``docs/networks.md`` shows how.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

import torch
from torch import nn

from napari_apprentice.networks._interface import IoUHead, Output
from napari_apprentice.networks._recall import Recalled
from napari_apprentice.networks.adaptiveclick import AdaptiveClick
from napari_apprentice.networks.cdnet import CDNet
from napari_apprentice.networks.deeplab import DeepLab
from napari_apprentice.networks.diversity import Diversity
from napari_apprentice.networks.latefusion import LateFusion
from napari_apprentice.networks.unet import UNet, UNetConfig
from napari_apprentice.types import WeightsError

__all__ = ["NETWORKS", "IoUHead", "Output", "Recalled", "UNet", "UNetConfig", "build", "config_of", "configuration"]

NETWORKS: dict[str, type[Any]] = {
    "unet": UNet,
    "deeplab": DeepLab,
    "diversity": Diversity,
    "cdnet": CDNet,
    "adaptiveclick": AdaptiveClick,
    "latefusion": LateFusion,
}
"""name -> network class."""


def configuration(name: str, config: Mapping[str, Any] | None = None, size: str = "") -> Any:
    """The configuration of a network, without the network.

    Parameters
    ----------
    name : a key of `NETWORKS`
    config : values for its configuration class; missing ones are those of ``size``
    size : a key of the network's ``SIZES``; empty for "small"

    Raises
    ------
    WeightsError : there is no such network or size, or its configuration has no such value
    """
    if name not in NETWORKS:
        raise WeightsError(f"a network called {name!r} was asked for; expected one of {', '.join(NETWORKS)}")
    sizes = NETWORKS[name].SIZES
    if (size := size or "small") not in sizes:
        raise WeightsError(f"{name!r} of the size {size!r} was asked for; expected one of {', '.join(sizes)}")
    known = {f.name for f in fields(sizes[size])}
    unknown = sorted(set(config or {}) - known)
    if unknown:
        raise WeightsError(f"the configuration of {name!r} names {', '.join(unknown)}; expected only {', '.join(sorted(known))}")
    return replace(sizes[size], **{key: _tupled(value) for key, value in (config or {}).items()})


def build(name: str, config: Mapping[str, Any] | None = None, size: str = "") -> nn.Module:
    """A freshly initialised network; parameters and errors as for `configuration`."""
    chosen = configuration(name, config, size)
    network: nn.Module = NETWORKS[name](chosen)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]  # convolves in half the time on a CPU


def config_of(network: nn.Module) -> tuple[str, dict[str, Any]]:
    """``(name, configuration)`` that `build` turns into this network again, without its weights."""
    for name, network_class in NETWORKS.items():
        if type(network) is network_class:
            return name, asdict(network.config)  # type: ignore[call-overload]
    raise WeightsError(f"a {type(network).__name__} arrived; expected one of the registered networks {', '.join(NETWORKS)}")


def _tupled(value: Any) -> Any:
    """Lists, as JSON and TOML have them, as the tuples of a configuration."""
    return tuple(map(_tupled, value)) if isinstance(value, list) else value
