"""Weights files: what is saved is what is loaded, and nothing else is taken for weights."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from napari_apprentice.networks import build, config_of
from napari_apprentice.types import WeightsError, WriteError
from napari_apprentice.weights import DEFAULT_WEIGHTS, LoadedWeights, load_weights, save_weights

TINY = {"widths": [8, 16, 16, 16, 16], "groups": 4}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return build("unet", TINY)


@pytest.fixture
def saved(network, tmp_path) -> Path:
    return save_weights(network, tmp_path / "tiny.safetensors", {"steps": 12, "note": "für den Test"})


def rewritten(path: Path, *, drop: str = "", **metadata: str) -> Path:
    """The file with other metadata, or without one tensor or one entry of its metadata."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        facts = dict(file.metadata())
    tensors = load_file(path)
    tensors.pop(drop, None)
    facts.pop(drop, None)
    save_file(tensors, path, facts | metadata)
    return path


def refusal(path: Path) -> str:
    """The sentence with which the file is refused."""
    with pytest.raises(WeightsError) as caught:
        load_weights(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


# --- identity ---------------------------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(network, saved):
    loaded = load_weights(saved)
    assert isinstance(loaded, LoadedWeights)
    assert (loaded.name, config_of(loaded.network)) == ("unet", config_of(network))
    assert loaded.facts == {"steps": 12, "note": "für den Test"}
    expected = network.state_dict()
    found = loaded.network.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in expected.items())
    assert not loaded.network.training


def test_a_copy_has_the_same_digest_and_other_weights_have_another(saved, tmp_path):
    copy = shutil.copy(saved, tmp_path / "copy.safetensors")
    assert load_weights(copy).digest == load_weights(saved).digest
    torch.manual_seed(1)
    other = save_weights(build("unet", TINY), tmp_path / "other.safetensors")
    assert load_weights(other).digest != load_weights(saved).digest


def test_saving_makes_the_folder_and_leaves_nothing_beside_the_file(network, tmp_path):
    path = save_weights(network, tmp_path / "new" / "folder" / "w.safetensors")
    assert [p.name for p in path.parent.iterdir()] == ["w.safetensors"]


# --- importance -------------------------------------------------------------------------------------------------------------------------


def importance_of(network: nn.Module, **changes: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    return {k: torch.rand_like(v) * 10.0 ** torch.randint(-9, 6, v.shape) for k, v in network.named_parameters()} | changes


def test_importance_is_kept_beside_the_weights_to_two_digits(network, tmp_path):
    known = importance_of(network)
    loaded = load_weights(save_weights(network, tmp_path / "w.safetensors", {"steps": 1}, known))
    assert loaded.importance.keys() == known.keys()
    for key, value in known.items():
        assert loaded.importance[key].dtype == torch.float32
        torch.testing.assert_close(loaded.importance[key], value, rtol=1 / 256, atol=0)
    assert all(torch.equal(loaded.network.state_dict()[k], v) for k, v in network.state_dict().items())


def test_weights_may_not_say_what_is_important(saved):
    assert load_weights(saved).importance == {}


@pytest.mark.parametrize(
    "changes",
    [{"unknown": torch.ones(3)}, {"to_logits.bias": torch.ones(7)}, {"stem.weight": torch.full((8, 6, 4, 4), -1.0)}],
    ids=["unknown", "shape", "negative"],
)
def test_importance_of_something_else_is_refused(network, tmp_path, changes):
    message = refusal(save_weights(network, tmp_path / "w.safetensors", {}, importance_of(network, **changes)))
    assert "importan" in message


def test_importance_of_some_parameters_only_is_refused(network, tmp_path):
    known = importance_of(network)
    known.pop("stem.weight")
    assert "importan" in refusal(save_weights(network, tmp_path / "w.safetensors", {}, known))


def test_importance_that_is_not_finite_is_refused(network, tmp_path):
    wrong = torch.full_like(network.to_logits.bias, float("nan"))
    assert "to_logits.bias" in refusal(
        save_weights(network, tmp_path / "w.safetensors", {}, importance_of(network, **{"to_logits.bias": wrong}))
    )


# --- refusals ---------------------------------------------------------------------------------------------------------------------------


def test_a_missing_file_a_folder_and_an_empty_file_are_refused(tmp_path):
    refusal(tmp_path / "none.safetensors")
    assert f"{tmp_path} is a folder" in refusal(tmp_path)
    (tmp_path / "empty.safetensors").touch()
    refusal(tmp_path / "empty.safetensors")


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "picture.safetensors"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(5000))
    refusal(path)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.999])
def test_a_truncated_file_is_refused(saved, share):
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(share * len(whole))])
    refusal(saved)


def test_safetensors_of_another_program_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    assert "format None" in refusal(path)
    save_file({"weight": torch.zeros(3)}, path, {"format": "pt"})
    assert "'pt'" in refusal(path)


def test_a_network_that_is_not_there_is_refused(saved):
    assert "'vnet'" in refusal(rewritten(saved, network="vnet"))


def test_weights_of_another_configuration_are_refused(saved):
    larger = json.dumps({"widths": [16, 16, 16, 16, 16], "groups": 4})
    assert "does not fit" in refusal(rewritten(saved, config=larger))


def test_a_missing_and_an_unknown_tensor_are_refused(saved):
    assert "to_logits.weight" in refusal(rewritten(saved, drop="to_logits.weight"))
    tensors = load_file(saved)
    assert "to_logits.weight" not in tensors


def test_values_that_are_not_finite_are_refused(network, tmp_path):
    broken = build("unet", TINY)
    broken.load_state_dict(network.state_dict())
    for value in (float("nan"), float("inf")):
        with torch.no_grad():
            broken.to_logits.bias.fill_(value)
        assert "to_logits.bias" in refusal(save_weights(broken, tmp_path / "broken.safetensors"))


@pytest.mark.parametrize(
    "facts",
    [
        {"drop": "network"},
        {"drop": "config"},
        {"config": "{"},
        {"config": "[1, 2]"},
        {"config": json.dumps({"widths": "wide"})},
        {"config": json.dumps(TINY | {"groups": 3})},
        {"config": json.dumps(TINY | {"groups": 0})},
        {"config": json.dumps(TINY | {"blocks": [1]})},
        {"facts": "nothing"},
    ],
    ids=str,
)
def test_damaged_metadata_is_refused(saved, facts):
    refusal(rewritten(saved, **facts))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_one_wrong_byte_in_the_header_never_ends_in_anything_but_weights_or_a_refusal(saved, data):
    whole = bytearray(saved.read_bytes())
    header = 8 + int.from_bytes(whole[:8], "little")
    at = data.draw(st.integers(0, header - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    path = saved.with_name("damaged.safetensors")
    path.write_bytes(whole)
    with suppress(WeightsError):
        assert isinstance(load_weights(path), LoadedWeights)


# --- a failing disk ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", ["replace", "write"])
def test_a_save_that_fails_leaves_the_old_file_whole(network, saved, monkeypatch, failing):
    before = saved.read_bytes()

    def no_room(*_args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if failing == "replace":
        monkeypatch.setattr("napari_apprentice.weights.os.replace", no_room)
    else:
        monkeypatch.setattr(Path, "write_bytes", no_room)
    torch.manual_seed(2)
    with pytest.raises(WriteError, match="No space left"):
        save_weights(build("unet", TINY), saved)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_a_folder_that_is_a_file_is_one_sentence(network, saved):
    with pytest.raises(WriteError, match="expected a writable folder") as caught:
        save_weights(network, saved / "below.safetensors")
    assert "\n" not in str(caught.value)


@pytest.fixture
def one_thread():
    """PyTorch computes in one thread: several wait for each other on a busy processor, and the waiting counts as computing."""
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(usual)


# --- what is shipped --------------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not DEFAULT_WEIGHTS.exists(), reason="the shipped weights are not there (not trained yet)")
def test_the_shipped_weights_load_quickly_and_say_how_they_came_to_be(one_thread):
    load_weights()
    times = []
    for _ in range(3):
        began = time.thread_time()  # not the clock on the wall: other programs may share the processor
        loaded = load_weights()
        times.append(time.thread_time() - began)
    assert min(times) < 0.5
    assert loaded.name == "unet"
    assert loaded.facts["steps"] > 0
    assert np.isfinite([float(p.detach().abs().max()) for p in loaded.network.parameters()]).all()
