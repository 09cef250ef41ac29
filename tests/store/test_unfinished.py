"""Finished layers and training states come back bit for bit; what is damaged is absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from sdvq_core.quantizers import parse
from sdvq_core.records import LayerRecord
from sdvq_core.store import Unfinished

RECORD = LayerRecord("a.b.0", "linear", (32, 32), "rtn", 4.5, 576, 0.0101234567, 0.02)


@pytest.fixture
def unfinished(tmp_path: Path) -> Unfinished:
    return Unfinished(tmp_path / "unfinished" / "key")


@pytest.mark.parametrize("word", ["rtn", "rvq:bits=2", "tcq", "nf4"])
def test_a_layer_comes_back_whole(unfinished: Unfinished, word: str) -> None:
    tensor = parse(word).quantize(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))
    assert unfinished.layer("a.b.0") is None
    unfinished.keep_layer(tensor, RECORD)
    found = unfinished.layer("a.b.0")
    assert found is not None
    assert found[1] == RECORD
    assert found[0].meta == tensor.meta
    assert all(torch.equal(found[0].tensors[name], tensor.tensors[name]) for name in tensor.tensors)


@pytest.mark.parametrize("cut", [0, 5, 40, -1])
def test_a_damaged_file_counts_as_absent(unfinished: Unfinished, cut: int) -> None:
    unfinished.keep_layer(parse("rtn").quantize(torch.eye(32)), RECORD)
    unfinished.keep_state({"x": torch.arange(5)}, {"done": 3})
    for path in unfinished.folder.iterdir():
        path.write_bytes(path.read_bytes()[:cut])
    assert unfinished.layer("a.b.0") is None
    assert unfinished.state() is None


def test_the_last_state_of_training_is_the_one_that_is_kept(unfinished: Unfinished) -> None:
    unfinished.keep_state({"x": torch.arange(5)}, {"done": 3})
    unfinished.keep_state({"x": torch.arange(6), "step": torch.tensor(7.0)}, {"done": 4, "curve": [[0, 0.5]]})
    tensors, about = unfinished.state() or ({}, {})
    assert about == {"done": 4, "curve": [[0, 0.5]]}
    assert torch.equal(tensors["x"], torch.arange(6))
    assert tensors["step"].shape == ()


def test_what_is_finished_goes_and_what_is_old_goes_with_it(unfinished: Unfinished) -> None:
    old, young = (Unfinished(unfinished.folder.parent / name) for name in ("old", "young"))
    for one in (unfinished, old, young):
        one.keep_state({}, {})
    os.utime(old.folder, (0, 0))
    unfinished.remove()
    assert [path.name for path in unfinished.folder.parent.iterdir()] == ["young"]
