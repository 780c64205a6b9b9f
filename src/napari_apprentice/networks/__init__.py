"""The networks, one self-contained file each, behind one small interface.

A network is a `torch.nn.Module` with

- ``config``: a frozen dataclass of plain values that rebuilds it through `build`;
- ``encode(image) -> features``: what depends on the image alone (cached between clicks);
- ``decode(features, guidance, previous) -> Output``: what depends on the clicks.

All tensors are ``(B, C, h, w)`` float32 at the working size, which must be a multiple of ``config.stride``. Adding a network means one
file here and one line in `NETWORKS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import nn

from napari_apprentice.networks.unet import Output, UNet, UNetConfig
from napari_apprentice.types import WeightsError

__all__ = ["NETWORKS", "Output", "UNet", "UNetConfig", "build", "config_of"]

NETWORKS: dict[str, tuple[type[Any], type[nn.Module]]] = {
    "unet": (UNetConfig, UNet),
}
"""name -> (configuration class, network class)."""


def build(name: str, config: Mapping[str, Any] | None = None) -> nn.Module:
    """A freshly initialised network.

    Parameters
    ----------
    name : a key of `NETWORKS`
    config : values for its configuration class; missing ones take their defaults

    Raises
    ------
    WeightsError : there is no such network, or its configuration has no such value
    """
    if name not in NETWORKS:
        raise WeightsError(f"a network called {name!r} was asked for; expected one of {', '.join(NETWORKS)}")
    config_class, network_class = NETWORKS[name]
    known = {f.name for f in fields(config_class)}
    unknown = sorted(set(config or {}) - known)
    if unknown:
        raise WeightsError(f"the configuration of {name!r} names {', '.join(unknown)}; expected only {', '.join(sorted(known))}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in (config or {}).items()}
    network: nn.Module = network_class(config_class(**values))
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]  # convolves in half the time on a CPU


def config_of(network: nn.Module) -> tuple[str, dict[str, Any]]:
    """``(name, configuration)`` that `build` turns into this network again, without its weights."""
    for name, (_, network_class) in NETWORKS.items():
        if type(network) is network_class:
            return name, asdict(network.config)  # type: ignore[call-overload]
    raise WeightsError(f"a {type(network).__name__} arrived; expected one of the registered networks {', '.join(NETWORKS)}")
