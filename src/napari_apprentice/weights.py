"""Network weights on disk: safetensors files that carry the network's name, its configuration and how they came to be."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from napari_apprentice.networks import build, config_of
from napari_apprentice.types import WeightsError, WriteError

__all__ = ["DEFAULT_WEIGHTS", "LoadedWeights", "load_weights", "save_weights"]

FORMAT = "napari-apprentice-1"
DEFAULT_WEIGHTS = Path(__file__).parent / "weights" / "unet.safetensors"
"""The weights that the package ships."""
_IMPORTANCE = "importance/"  # in brain floats: their range is that of float32, and two digits are enough


@dataclass(frozen=True, eq=False)
class LoadedWeights:
    """A network in evaluation mode, its registered name, what its file says of it, the file's digest, and the file.

    ``importance`` says of every parameter how much it matters to the source domain (see `importance`); empty if the file does not say.
    """

    network: nn.Module
    name: str
    facts: Mapping[str, Any]
    digest: str
    importance: Mapping[str, Tensor] = field(default_factory=dict)
    path: Path | None = None


def save_weights(
    network: nn.Module, path: Path | str, facts: Mapping[str, Any] | None = None, importance: Mapping[str, Tensor] | None = None
) -> Path:
    """Write ``network`` to ``path`` in one piece (a temporary file is renamed), with the ``importance`` of its parameters if that is known.

    Raises
    ------
    WriteError : the file cannot be written
    """
    path = Path(path)
    name, config = config_of(network)
    metadata = {"format": FORMAT, "network": name, "config": json.dumps(config), "facts": json.dumps(dict(facts or {}))}
    tensors: dict[str, Tensor] = dict(network.state_dict())
    tensors |= {f"{_IMPORTANCE}{k}": v.to(torch.bfloat16) for k, v in (importance or {}).items()}
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    temporary = path.with_name(f".{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(save(tensors, metadata))
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise WriteError(
            f"the weights cannot be written to {path} ({error.strerror or error}); expected a writable folder with room"
        ) from error
    return path


def load_weights(path: Path | str | None = None) -> LoadedWeights:
    """Read a network from ``path``, or the shipped one.

    Raises
    ------
    WeightsError : the file is missing or damaged, or its tensors do not fit the network that it names
    """
    path = Path(path) if path is not None else DEFAULT_WEIGHTS
    if path.is_dir():
        raise WeightsError(f"{path} is a folder; expected a safetensors file written by this program")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read as weights ({error}); expected a safetensors file written by this program") from error
    if metadata.get("format") != FORMAT:
        raise WeightsError(f"{path} says format {metadata.get('format')!r}; expected {FORMAT!r}, as `apprentice train` writes it")
    try:
        name, facts = metadata["network"], dict(json.loads(metadata.get("facts", "{}")))
        network = build(name, json.loads(metadata["config"]))
    except Exception as error:  # whatever a constructor makes of a damaged configuration
        said = error if isinstance(error, WeightsError) else repr(error)
        raise WeightsError(f"{path} names a network that cannot be built ({said}); expected one of this version, undamaged") from error
    importance = {k.removeprefix(_IMPORTANCE): tensors.pop(k).float() for k in list(tensors) if k.startswith(_IMPORTANCE)}
    _fit(network, tensors, path)
    _weigh(network, importance, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return LoadedWeights(network.eval(), name, facts, digest, importance, path)


def _fit(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    expected = network.state_dict()
    wrong = sorted(set(expected) ^ set(tensors)) + sorted(k for k in set(expected) & set(tensors) if expected[k].shape != tensors[k].shape)
    if wrong:
        shown = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise WeightsError(f"{path} does not fit the network it names: {shown} are missing, unknown or of another shape")
    if broken := [k for k, v in tensors.items() if not bool(v.isfinite().all())]:
        raise WeightsError(f"{path} holds values that are not finite in {broken[0]}; expected finite weights")
    network.load_state_dict(dict(tensors))


def _weigh(network: nn.Module, importance: Mapping[str, Tensor], path: Path) -> None:
    """Refuse importance that is not one of these parameters."""
    expected = {k: v.shape for k, v in network.named_parameters()}
    if importance and ({k: v.shape for k, v in importance.items()} != expected):
        raise WeightsError(f"{path} says how important other parameters are than those of its network; expected one value for each")
    if broken := [k for k, v in importance.items() if not bool(v.isfinite().all()) or bool((v < 0).any())]:
        raise WeightsError(f"{path} holds an importance of {broken[0]} that is negative or not finite; expected finite values from 0")
