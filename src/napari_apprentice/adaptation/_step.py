"""One step of the optimiser, all of it or nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from torch.optim.adam import adam

from napari_apprentice.knowledge import Knowledge, Tensors
from napari_apprentice.segmenter import NetworkSegmenter

__all__ = ["advance", "learning", "step"]


def advance(segmenter: NetworkSegmenter, loss: Tensor, rate: float, anchor: float) -> bool:
    """One `step` of all that learns down a loss; False and no change if not finite."""
    parameters = {key: value for key, value in segmenter.parameters.items() if value.requires_grad}
    grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    if not bool(torch.isfinite(loss)):
        return False
    learnt = step(segmenter, {key: grad for key, grad in zip(parameters, grads, strict=True) if grad is not None}, rate, anchor)
    if learnt is None:
        return False
    segmenter.restore(learnt)
    return True


@contextmanager
def learning(segmenter: NetworkSegmenter, part: str) -> Iterator[None]:
    """Let ``part`` of the network learn meanwhile: "all", or the "decoder", for which nothing of what comes before it is kept."""
    encoder = getattr(segmenter.network, "ENCODER", ()) if part == "decoder" else ()
    still = [value for key, value in segmenter.parameters.items() if key.split(".")[0] in encoder]
    try:
        for value in still:
            value.requires_grad_(False)
        yield
    finally:
        for value in still:
            value.requires_grad_(True)


def step(segmenter: NetworkSegmenter, grads: Mapping[str, Tensor], rate: float, anchor: float, second: float = 0.999) -> Knowledge | None:
    """What is known after one Adam step (Kingma & Ba, 2015; β = 0.9, ``second``) and a pull to the shipped weights; None if not finite."""
    old = segmenter.snapshot()
    weights, firsts, seconds = (
        {key: _alike(values.get(key), old.weights[key]) for key in grads} for values in (old.weights, old.first, old.second)
    )
    with torch.no_grad():
        adam(
            list(weights.values()),
            [grad if grad.stride() == weights[key].stride() else _alike(grad, weights[key]) for key, grad in grads.items()],
            list(firsts.values()),
            list(seconds.values()),
            max_exp_avg_sqs=[],
            state_steps=[torch.tensor(float(old.steps), device=segmenter.device) for _ in grads],
            fused=segmenter.device.type in ("cpu", "cuda"),
            amsgrad=False,
            beta1=0.9,
            beta2=second,
            lr=rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )
        for key, value in weights.items():
            value.lerp_(segmenter.base.weights[key], anchor)
    # An infinite second moment would pass unseen (its step is 0) and end all learning from then on.
    if not bool(torch.isfinite(torch.stack([value.sum() for values in (weights, seconds) for value in values.values()])).all()):
        return None
    learnt = replace(old, weights=_with(old.weights, weights), first=_with(old.first, firsts), second=_with(old.second, seconds))
    return replace(learnt, steps=old.steps + 1, marks=(), source_mark=None)


def _alike(values: Tensor | None, like: Tensor) -> Tensor:
    """A copy, zeros for None, laid out in memory as another tensor: the fused step walks through all of them side by side."""
    return torch.zeros_like(like) if values is None else torch.empty_like(like).copy_(values)


def _with(before: Tensors, after: Mapping[str, Tensor]) -> Tensors:
    return Tensors({**before, **after})
