"""Knowledge on disk: bit for bit what was learnt, on top of the right weights, or a refusal."""

from __future__ import annotations

import errno
import os
import unicodedata
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from napari_apprentice.guidance import WindowClick
from napari_apprentice.knowledge import Knowledge, KnowledgeStore, Remembered, Shelf, Tensors, differ, kind_of
from napari_apprentice.types import WeightsError, WriteError


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def base() -> Knowledge:
    generator = torch.Generator().manual_seed(0)
    return Knowledge(Tensors({name: torch.randn(2, 3, generator=generator) for name in ("stem.weight", "norm.weight", "to_iou.0.weight")}))


def taught(start: Knowledge) -> Knowledge:
    """``start`` with two tensors learnt and one object remembered, in values that text would round."""
    generator = torch.Generator().manual_seed(1)
    fresh = {k: torch.randn(2, 3, generator=generator) for k in ("stem.weight", "norm.weight")}
    first = Tensors({k: torch.randn(2, 3, generator=generator) * 1e-12 for k in fresh})
    second = Tensors({k: torch.rand(2, 3, generator=generator) * 1e-30 for k in fresh})
    clicks = ((WindowClick(1 / 3, 0.1, True), WindowClick(2.5, -0.5, False)), (WindowClick(7.0, 1e-7, True),))
    images, targets = torch.randn(2, 2, 3, 8, 8, generator=generator).half(), torch.rand(2, 2, 1, 8, 8, generator=generator) > 0.5
    remembered = tuple(Remembered(images[i], targets[i], clicks[:: 1 - 2 * i], (1 / 3, 0.1 + i), kind=f"{i}" * i) for i in range(2))
    return Knowledge(Tensors({**start.weights, **fresh}), first, second, 7, (1 / 3, 0.1 + 0.2, 1.9), remembered, worth=(-1 / 3, 2.44))


def assert_equal(found: Knowledge, expected: Knowledge) -> None:
    """Bit for bit."""
    for part in ("weights", "first", "second"):
        mine, theirs = getattr(found, part), getattr(expected, part)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[k], v) for k, v in theirs.items())
    assert (found.steps, found.extent_log, found.worth) == (expected.steps, expected.extent_log, expected.worth)
    assert len(found.memory) == len(expected.memory)
    for mine, theirs in zip(found.memory, expected.memory, strict=True):
        assert torch.equal(mine.images, theirs.images)
        assert mine.images.dtype == theirs.images.dtype
        assert torch.equal(mine.targets, theirs.targets)
        assert mine.targets.dtype == theirs.targets.dtype
        assert (mine.clicks, mine.best, mine.kind) == (theirs.clicks, theirs.best, theirs.kind)


@pytest.fixture
def store() -> KnowledgeStore:
    return KnowledgeStore(base(), "0123456789ab")


@pytest.fixture
def saved(store, tmp_path) -> Path:
    path = tmp_path / "model.safetensors"
    store.save(taught(store.base), path)
    return path


def refusal(store: KnowledgeStore, path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        store.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_what_is_saved_is_loaded_bit_for_bit(store, saved):
    assert_equal(store.load(saved), taught(store.base))


def test_moments_are_shortened_only_where_nothing_is_lost(store, tmp_path):
    """Practice keeps them in half of the bits, whoever learns after it does not."""
    known = taught(store.base)
    practised = replace(known, practised=Tensors({k: v.half().float() for k, v in known.weights.items()}))
    rounded = replace(practised, first=Tensors({k: v.bfloat16().float() for k, v in known.first.items()}))
    sizes = []
    for knowledge in (practised, rounded):
        store.save(knowledge, tmp_path / "model.safetensors")
        sizes.append((tmp_path / "model.safetensors").stat().st_size)
        assert_equal(store.load(tmp_path / "model.safetensors"), knowledge)
    assert sizes[1] < sizes[0]


def test_what_came_back_from_the_shelf_is_no_other(store):
    shelf, knowledge = Shelf(budget_bytes=0), taught(store.base)
    same = Knowledge(Tensors(dict(store.base.weights)))
    for one in (same, knowledge, taught(store.base)):
        shelf.keep(one)
    assert not differ(same.weights, store.base.weights)
    assert differ(knowledge.weights, store.base.weights)


def test_what_stays_is_never_put_away():
    shelf, pieces = Shelf(budget_bytes=0), lesson_after_lesson(3)
    kept = replace(pieces[0], weights=Tensors(dict(pieces[0].weights), stays=True))
    tensors = dict(kept.weights)
    for one in (kept, *pieces[1:]):
        shelf.keep(one)
    assert kept.first._values is None
    assert all(kept.weights[k] is v for k, v in tensors.items())


@pytest.mark.parametrize("known_before", [base, lambda: taught(base())], ids=["nothing", "something"])
def test_within_an_object_what_was_known_before_it_is_saved_too(store, tmp_path, known_before):
    before = known_before()
    now = replace(taught(before), memory=before.memory, steps=3, before_object=before)  # the memory is shared, as by image adaptation
    store.save(now, tmp_path / "within.safetensors")
    loaded = store.load(tmp_path / "within.safetensors")
    assert_equal(loaded, now)
    assert_equal(loaded.before_object, before)
    assert loaded.before_object.before_object is None


def test_without_an_object_nothing_was_before_it(store, saved):
    assert store.load(saved).before_object is None


def test_damage_in_what_was_known_before_an_object_is_refused(store, tmp_path):
    path = tmp_path / "within.safetensors"
    for damage in ({"before_object/steps": "many"}, {"drop": "before_object/second/stem.weight"}, {"drop": "before_object/clicks"}):
        store.save(replace(taught(store.base), before_object=taught(store.base)), path)
        refusal(store, rewritten(path, **damage))


def test_knowing_nothing_new_is_saved_too(store, tmp_path):
    store.save(store.base, tmp_path / "none.safetensors")
    loaded = store.load(tmp_path / "none.safetensors")
    assert_equal(loaded, store.base)
    assert all(loaded.weights[k] is v for k, v in store.base.weights.items())


def test_only_what_differs_from_the_base_is_written(store, saved):
    names = load_file(saved).keys()
    assert "weight/stem.weight" in names
    assert "weight/to_iou.0.weight" not in names


def test_loading_leaves_the_base_as_it_was(store, saved):
    store.load(saved)
    assert_equal(store.base, base())


def test_knowledge_about_other_weights_is_refused(store, saved):
    message = refusal(KnowledgeStore(store.base, "ba9876543210"), saved)
    assert "0123456789ab" in message
    assert "ba9876543210" in message


def test_a_missing_a_truncated_and_a_foreign_file_are_refused(store, saved, tmp_path):
    refusal(store, tmp_path / "none.safetensors")
    whole = saved.read_bytes()
    for share in (0.0, 0.01, 0.5, 0.999):
        saved.write_bytes(whole[: int(share * len(whole))])
        refusal(store, saved)
    save_file({"weight/stem.weight": torch.zeros(2, 3)}, saved)
    refusal(store, saved)


def rewritten(path: Path, *, drop: str = "", tensor: tuple[str, torch.Tensor] | None = None, **metadata: str) -> Path:
    with safe_open(path, framework="pt") as file:
        facts = dict(file.metadata())
    tensors = load_file(path)
    tensors.pop(drop, None)
    facts.pop(drop, None)
    save_file(tensors | dict([tensor] if tensor else []), path, facts | metadata)
    return path


@pytest.mark.parametrize(
    "damage",
    [
        {"drop": "steps"},
        {"drop": "clicks"},
        {"drop": "extent_log"},
        {"steps": "many"},
        {"clicks": "["},
        {"clicks": "[[[[1, 2]]]]"},
        {"extent_log": "[1, 2]"},
        {"worth": "[1, 2, 3]"},
        {"kind": '["one"]'},
        {"best": "[[0.5, 0.5]]"},
        {"best": "[[0.5], [0.5]]"},
        {"best": "[[0.5, 0.5], [0.5, null]]"},
        {"drop": "second/stem.weight"},
        {"drop": "memory/1/targets"},
        {"tensor": ("weight/stem.weight", torch.zeros(5))},
        {"tensor": ("weight/stem.weight", torch.full((2, 3), float("nan")))},
        {"tensor": ("weight/unknown", torch.zeros(5))},
        {"tensor": ("weight/stem.weight", torch.zeros(2, 3, dtype=torch.int8))},
        {"tensor": ("memory/0/images", torch.zeros(2, 2, 8, 8).half())},
        {"tensor": ("memory/0/images", torch.zeros(1, 3, 8, 8).half())},
        {"tensor": ("memory/0/images", torch.zeros(2, 3, 8, 7).half())},
        {"tensor": ("memory/0/images", torch.zeros(2, 3, 0, 0).half())},
        {"tensor": ("memory/0/images", torch.tensor(1.0))},
        {"tensor": ("memory/0/images", torch.full((2, 3, 8, 8), torch.nan).half())},
        {"tensor": ("memory/0/images", torch.zeros(2, 3, 8, 8, dtype=torch.int8))},
        {"tensor": ("memory/1/targets", torch.zeros(1))},
        {"tensor": ("memory/1/targets", torch.zeros(2, 3, 8, 8).bool())},
        {"tensor": ("memory/1/targets", torch.zeros(2, 1, 8, 8))},
        {"tensor": ("memory/1/ground", torch.zeros(3, 8, 8, dtype=torch.uint8))},
        {"tensor": ("memory/1/ground", torch.zeros(4, 8, 9, dtype=torch.uint8))},
        {"tensor": ("memory/1/ground", torch.zeros(4, 8, 8))},
        {"clicks": "[[[[1, 2, true]]], [[[1, 2, true]]]]"},
        {"clicks": "[[[[1, 2, true]], []], [[[1, 2, true]], [[1, 2, true]]]]"},
        {"clicks": "[[[[1, 2, true]], [[1, 2, true]]], [[[1, NaN, true]], [[1, 2, true]]]]"},
        {"best": "[[0.5, 0.5], [0.5, NaN]]"},
        {"extent_log": "[NaN, 1, 2]"},
        {"extent_log": f"[1{'0' * 400}, 1, 2]"},
        {"worth": "[Infinity, 1]"},
        {"lead": "[0, -Infinity]"},
        {"steps": "-1"},
    ],
    ids=lambda damage: str(damage).replace("\n", " ")[:60],
)
def test_damage_inside_the_file_is_refused(store, saved, damage):
    refusal(store, rewritten(saved, **damage))


def test_remembered_objects_of_several_sizes_are_refused(store, saved):
    rewritten(saved, tensor=("memory/1/images", torch.zeros(2, 3, 9, 9).half()))
    assert "memory/1/images" in refusal(store, rewritten(saved, tensor=("memory/1/targets", torch.zeros(2, 1, 9, 9).bool())))


def test_a_class_is_the_same_however_its_accents_are_written():
    for name, digest in (("Läsion", "8d94699bf5ad"), ("Lesion ", "cd5f70ca8d37")):
        assert {kind_of(unicodedata.normalize(form, name)) for form in ("NFC", "NFD")} == {digest}


def test_what_an_older_version_wrote_is_read(store, saved):
    rewritten(saved, drop="worth")
    rewritten(saved, drop="kind")
    loaded = store.load(rewritten(saved, drop="best"))
    plain = taught(store.base)
    assert_equal(loaded, replace(plain, worth=(0.0, 0.0), memory=tuple(replace(one, best=(0.0, 0.0), kind="") for one in plain.memory)))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_one_wrong_byte_in_the_header_never_ends_in_anything_but_knowledge_or_a_refusal(store, saved, data):
    whole = bytearray(saved.read_bytes())
    header = 8 + int.from_bytes(whole[:8], "little")
    at = data.draw(st.integers(0, header - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    path = saved.with_name("damaged.safetensors")
    path.write_bytes(whole)
    with suppress(WeightsError):
        assert store.load(path).weights.keys() == store.base.weights.keys()


@pytest.mark.parametrize("failing", ["replace", "write"])
def test_a_save_that_fails_leaves_the_old_file_whole(store, saved, monkeypatch, failing):
    before = saved.read_bytes()

    def no_room(*_args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if failing == "replace":
        monkeypatch.setattr("napari_apprentice.knowledge.os.replace", no_room)
    else:
        monkeypatch.setattr(Path, "write_bytes", no_room)
    with pytest.raises(WriteError, match="No space left"):
        store.save(replace(taught(store.base), steps=8), saved)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_a_folder_that_is_not_there_is_one_sentence(store, saved):
    for path in (saved / "below.safetensors", saved.parent / "none" / "model.safetensors"):
        with pytest.raises(WriteError, match="expected a writable folder"):
            store.save(store.base, path)


# --- the shelf --------------------------------------------------------------------------------------------------------------------------


def lesson_after_lesson(count: int) -> list[Knowledge]:
    """Pieces of knowledge that share nothing, 3 × 4 kB each."""
    generator = torch.Generator().manual_seed(2)
    return [
        Knowledge(
            *(Tensors({"a": torch.randn(600, generator=generator), "b": torch.randn(20, 20, generator=generator)}) for _ in range(3)), i
        )
        for i in range(count)
    ]


def copies(knowledge: Knowledge) -> list[dict[str, torch.Tensor]]:
    return [{k: v.clone() for k, v in part.items()} for part in (knowledge.weights, knowledge.first, knowledge.second)]


def in_memory(knowledge: Knowledge) -> bool:
    return any(part._values is not None for part in (knowledge.weights, knowledge.first, knowledge.second))


@settings(max_examples=15)
@given(st.integers(0, 80_000), st.lists(st.integers(0, 5), max_size=12))
def test_whatever_the_budget_knowledge_comes_back_bit_for_bit(budget, order):
    shelf, pieces = Shelf(budget), lesson_after_lesson(6)
    expected = [copies(piece) for piece in pieces]
    for piece in pieces:
        shelf.keep(piece)
        assert in_memory(piece)
    for i in [*order, *range(6)]:
        shelf.keep(pieces[i])
        for part, wanted in zip((pieces[i].weights, pieces[i].first, pieces[i].second), expected[i], strict=True):
            assert part.keys() == wanted.keys()
            assert all(torch.equal(part[k], v) for k, v in wanted.items())


def test_knowledge_that_came_back_from_the_shelf_is_saved_like_any_other(store, tmp_path):
    shelf, knowledge = Shelf(budget_bytes=0), taught(store.base)
    shelf.keep(store.base)
    shelf.keep(knowledge)
    shelf.keep(lesson_after_lesson(1)[0])
    assert not in_memory(knowledge)
    store.save(knowledge, tmp_path / "model.safetensors")
    assert_equal(store.load(tmp_path / "model.safetensors"), taught(base()))


def test_what_lies_on_the_shelf_stays_within_the_budget():
    shelf, pieces = Shelf(budget_bytes=40_000), lesson_after_lesson(12)
    for piece in pieces:
        shelf.keep(piece)
        assert shelf.held_bytes <= 40_000
    assert [in_memory(piece) for piece in pieces] == [False] * 9 + [True] * 3


def test_knowledge_that_nobody_refers_to_takes_no_room():
    shelf, pieces = Shelf(), lesson_after_lesson(3)
    for piece in pieces:
        shelf.keep(piece)
    one = shelf.held_bytes / 3
    del piece, pieces[1:]
    assert shelf.held_bytes == one


def test_shared_tensors_count_once():
    shelf, (first, second) = Shelf(), lesson_after_lesson(2)
    shelf.keep(first)
    before = shelf.held_bytes
    shelf.keep(replace(first, steps=99))
    later = replace(first, weights=second.weights)
    shelf.keep(later)
    assert shelf.held_bytes == before + before / 3


def test_a_disk_that_takes_nothing_costs_memory_and_no_knowledge(monkeypatch):
    def no_room(*_args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("napari_apprentice.knowledge.save_file", no_room)
    shelf, pieces = Shelf(budget_bytes=1), lesson_after_lesson(3)
    expected = copies(pieces[0])
    for piece in pieces:
        shelf.keep(piece)
    assert all(in_memory(piece) for piece in pieces)
    assert torch.equal(pieces[0].second["b"], expected[2]["b"])


def test_a_temporary_folder_that_vanished_costs_memory_and_no_knowledge():
    shelf, pieces = Shelf(budget_bytes=1), lesson_after_lesson(4)
    for piece in pieces[:2]:
        shelf.keep(piece)
    pieces[0].weights["a"], pieces[0].first["a"], pieces[0].second["a"]  # looked at, so in memory again
    shelf._folder.cleanup()
    for piece in pieces[2:]:
        shelf.keep(piece)
    assert in_memory(pieces[1])
    assert in_memory(pieces[2])
