"""A device in Python whose tensors live apart from the processor's, as those of a graphics card do: whatever mixes the two fails.

As a program it does the same work on the processor and on that device, and says as JSON what came out::

    python tests/elsewhere.py FOLDER POLICY
    python tests/elsewhere.py FOLDER train

It needs a process of its own, as PyTorch asks for its devices once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

from napari_apprentice import segmenter as module
from napari_apprentice.assembly import open_session, resume_session
from napari_apprentice.networks import build
from napari_apprentice.samples import Drawn
from napari_apprentice.training import _Run, read_recipe
from napari_apprentice.types import Click, Image
from napari_apprentice.weights import load_weights, save_weights

NAME = "elsewhere"
ATEN = torch.ops.aten
CROSSING = {ATEN._to_copy.default, ATEN.copy_.default}
TAKES_INDICES = {ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default, ATEN._index_put_impl_.default}


class Far(torch.Tensor):
    """A tensor of that device. Its values are in a tensor of the processor that nobody else sees."""

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> Far:
        shape = {"strides": values.stride(), "storage_offset": values.storage_offset(), "dtype": values.dtype, "layout": values.layout}
        made = torch.Tensor._make_wrapper_subclass(cls, values.size(), device=f"{NAME}:0", **shape)
        made.values = values
        return made

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def __repr__(self, **_: Any) -> str:
        return f"Far({self.values})"

    @classmethod
    def __torch_dispatch__(cls, func, _types, args=(), kwargs=None):
        return _done(func, args, kwargs or {})


class Elsewhere(TorchDispatchMode):
    """While it is on, tensors can be made there and brought there."""

    def __torch_dispatch__(self, func, _types, args=(), kwargs=None):
        return _done(func, args, kwargs or {})


def _done(func, args, kwargs):
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
    far = [each for each in tensors if isinstance(each, Far)]
    near = [each for each in tensors if not isinstance(each, Far) and each.ndim]  # single numbers may come from the processor
    if far and near and func not in CROSSING | TAKES_INDICES:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, but found some here and some {NAME}")
    device = kwargs.get("device")
    there = bool(far) if device is None else torch.device(device).type == NAME
    if func is ATEN.copy_.default:
        there = isinstance(args[0], Far)
    args_here, kwargs_here = tree_map_only(Far, lambda each: each.values, (args, kwargs))
    found = func(*args_here, **(kwargs_here if device is None else kwargs_here | {"device": "cpu"}))
    return return_and_correct_aliasing(func, args, kwargs, tree_map_only(torch.Tensor, Far, found)) if there else found


class _Backend(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


def _empty(size, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    return Far(torch.empty(size, dtype=dtype, device="cpu"))


def _empty_strided(size, stride, *, dtype=None, layout=None, device=None, pin_memory=None):
    return Far(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))


def _copy_from(source, target, non_blocking=False):
    here, there = (each.values if isinstance(each, Far) else each for each in (source, target))
    there.copy_(here)
    return target


def register() -> torch.library.Library:
    """Make the device known to PyTorch, and to the segmenter as "cuda". What is returned has to live as long as it is used."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    library = torch.library.Library("aten", "IMPL")
    for name, kernel in (("empty.memory_format", _empty), ("empty_strided", _empty_strided), ("_copy_from", _copy_from)):
        library.impl(name, kernel, "PrivateUse1")
    pick = module.pick_device
    module.pick_device = lambda name: torch.device(NAME) if name == "cuda" else pick(name)
    return library


def volume() -> Image:
    """Two tubes in noise."""
    rows, cols = np.mgrid[:96, :96]
    values = np.random.default_rng(0).normal(100, 5, (1, 6, 96, 96)).astype(np.float32)
    for index, plane in enumerate(values[0]):
        plane[((rows - 40) ** 2 + (cols - 40 - index) ** 2 < 200) | ((rows - 70) ** 2 + (cols - 75) ** 2 < 80)] += 60
    return Image(values, name="tubes")


def work(image: Image, weights: Path, policy: str, device: str, folder: Path) -> dict[str, Any]:
    """A session, undone and redone, propagated, with versions gone back to, closed and resumed: what came out of it."""
    found: list[np.ndarray] = []
    session = open_session(image, weights=weights, policy=policy, device=device, folder=folder)
    shipped = session._segmenter.snapshot().weights
    for inside, outside in (((2, 40, 42), (2, 60, 60)), ((3, 70, 75), (3, 40, 20))):
        session.add(Click(inside))
        session.add(Click(outside, positive=False))
        found += [session.labels.copy(), session.peek().mask, session.probability()]
        session.accept()
        session.practise(1)
    knowledge = session._segmenter.snapshot().weights
    learnt = {key: np.asarray(value.detach().cpu()) for key, value in knowledge.items()}
    changed = any(bool((value != shipped[key]).any()) for key, value in knowledge.items())
    session.undo()
    session.redo()
    session.propagate()
    found.append(session.labels.copy())
    if len(session.versions.versions) > 1:
        session.go_back(1)
        session.export(1, folder / "version.safetensors", pictures=True)
    if session.taught:
        session.forget()
    session.add(Click((1, 20, 20)))
    session.add(Click((1, 30, 20)))
    session.close()
    session = resume_session(folder, image, weights=weights, device=device)
    session.add(Click((1, 40, 40), positive=False))
    found.append(session.labels.copy())
    session.close()
    about = {"device": session.device, "versions": len(session.versions.versions), "changed": changed}
    return about | {"found": found, "weights": learnt}


class OneDevice:
    """What training asks of Lightning Fabric, which knows no devices in Python."""

    global_rank = 0

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.setup_module = lambda module: module.to(self.device)
        self.setup_optimizers = lambda optimiser: optimiser
        self.autocast = nullcontext
        self.backward = lambda loss: loss.backward()

    def setup_dataloaders(self, batches: Iterable[Drawn]) -> Iterator[Drawn]:
        return (Drawn(*(part.to(self.device) for part in drawn)) for drawn in batches)

    def clip_gradients(self, _module, optimiser, max_norm: float, error_if_nonfinite: bool) -> None:
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, max_norm, error_if_nonfinite)


RECIPE = """
optimiser = "muon"
steps = 4
warmup = 0
sizes = [[32, 3]]
views = [[1.0, 0.3, 0.8]]
synthetic = 1.0
careless = 0.3
given = 0.3
examples = [0.0, 0.5, 0.5]
workers = 0
importance = 3
config = { widths = [8, 16, 16, 16, 16], groups = 4, likeness = 2, recall = 8 }
"""


def trained(device: str, folder: Path) -> dict[str, Any]:
    """A few steps of training, how right what was trained is, and how much every weight matters."""
    torch.manual_seed(0)
    folder.mkdir()
    (folder / "recipe.toml").write_text(RECIPE, "utf-8")
    found = load_weights(_Run(read_recipe(folder / "recipe.toml"), None, folder / "w.safetensors", OneDevice(device), "").finish(False))
    learnt = {key: np.asarray(value.detach()) for key, value in found.network.state_dict().items()}
    matters = np.array([float(value.mean()) for value in found.importance.values()])
    course = np.loadtxt(folder / "w.csv", delimiter=",", skiprows=1)[4:]  # IoU
    about = {"device": device, "versions": 0, "changed": True}
    return about | {"found": [course, matters / matters.max()], "weights": learnt}


def main(folder: Path, policy: str) -> None:
    """Print what both devices make of the same work."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = build("unet", {"widths": [8, 16, 16, 16, 16], "groups": 4, "likeness": 2, "recall": 8})
    with torch.no_grad():
        for parameter in network.parameters():  # what begins at zero says something, too
            parameter.add_(0.02 * torch.randn_like(parameter))
    weights, image = save_weights(network.eval(), folder / "w.safetensors", {}), volume()
    library = register()
    if policy == "train":
        here = trained("cpu", folder / "here")
        with Elsewhere():
            there = trained(NAME, folder / "there")
    else:
        here = work(image, weights, policy, "cpu", folder / "here")
        with Elsewhere():
            there = work(image, weights, policy, "cuda", folder / "there")
    del library
    close = 0.05 if policy == "train" else 1e-3
    same = [bool(np.allclose(a, b, atol=close)) for a, b in zip(here["found"], there["found"], strict=True)]
    apart = max(float(np.abs(value - there["weights"][key]).max()) for key, value in here["weights"].items())
    told = {key: [here[key], there[key]] for key in ("device", "versions", "changed")}
    print(json.dumps(told | {"same": same, "weights_apart": apart}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
