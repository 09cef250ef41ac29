"""Samples on disk: what is written comes back, what is damaged counts as absent."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sdvq_core.store.samples import SampleStore, content_key

TENSORS = {"latents": torch.arange(12.0).reshape(3, 4), "images": torch.arange(6, dtype=torch.uint8)}


@pytest.fixture
def store(tmp_path: Path) -> SampleStore:
    found = SampleStore(tmp_path)
    found.put("arm", "batch", TENSORS, 1.5)
    return found


def test_what_is_written_comes_back(store, tmp_path):
    tensors, seconds, mode = store.get("arm", "batch")
    assert (seconds, mode) == (1.5, None)
    assert set(tensors) == set(TENSORS)
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert [path.name for path in (tmp_path / "arm").iterdir()] == ["batch.safetensors"]


def test_a_second_write_replaces_the_first(store):
    store.put("arm", "batch", {"latents": torch.zeros(1)}, 2.0)
    assert set(store.get("arm", "batch")[0]) == {"latents"}


def test_the_mode_is_kept(store):
    store.put("arm", "batch", TENSORS, 2.0, "streaming")
    assert store.get("arm", "batch").mode == "streaming"


def test_absent_is_none(store):
    assert store.get("arm", "other") is None
    assert store.get("other", "batch") is None


@pytest.mark.parametrize("harm", ["cut", "flip", "foreign", "empty", "folder"])
def test_damaged_counts_as_absent(store, tmp_path, harm):
    path = tmp_path / "arm" / "batch.safetensors"
    data = path.read_bytes()
    path.unlink()
    if harm == "folder":
        path.mkdir()
    else:
        flipped = data[:-1] + bytes([data[-1] ^ 1])
        path.write_bytes({"cut": data[:-3], "flip": flipped, "foreign": b"not safetensors", "empty": b""}[harm])
    assert store.get("arm", "batch") is None


def test_keys_follow_the_content():
    assert content_key("a", 1) == content_key("a", 1)
    assert len({content_key("a", 1), content_key("a", 2), content_key("a"), content_key(["a", 1])}) == 4
