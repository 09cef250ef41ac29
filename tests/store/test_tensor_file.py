"""Tensors written one after another: the very bytes of safetensors' own writer, whole or not at all."""

from __future__ import annotations

import errno
import os
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdvq_core.errors import StoreError
from sdvq_core.store import tensor_file
from sdvq_core.store.tensor_file import (
    WORDS,
    TensorFile,
    file_head,
    flush,
    stored_order,
    write_tensors,
    writing_tensors,
)

Usage = namedtuple("Usage", "total used free")


def specs_of(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def filled(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).remainder(2).to(dtype).reshape(shape)


def same_bytes(one: Tensor, other: Tensor) -> bool:
    left, right = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return (one.dtype, one.shape) == (other.dtype, other.shape) and torch.equal(left, right)


def both(tensors: dict[str, Tensor], metadata: dict[str, str] | None, folder: Path) -> tuple[bytes, bytes]:
    """(bytes by safetensors, bytes by us)"""
    save_file(tensors, folder / "theirs.safetensors", metadata)
    write_tensors(folder / "ours.safetensors", specs_of(tensors), tensors.__getitem__, metadata)
    return (folder / "theirs.safetensors").read_bytes(), (folder / "ours.safetensors").read_bytes()


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {'k"\\\n\x01\x7f': "ü é \U0001f600 \x00"}])
def test_every_dtype_gives_the_bytes_of_safetensors(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    tensors = {f"{name}.{dtype}": filled(dtype, 3, 5) for name in ("b", "a", "B", "é") for dtype in WORDS}
    theirs, ours = both(tensors, metadata, tmp_path)
    assert ours == theirs


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(list(WORDS)), st.lists(st.integers(0, 4), max_size=4)),
        max_size=6,
    )
)
def test_every_shape_and_name_gives_the_bytes_of_safetensors(
    tmp_path_factory: pytest.TempPathFactory, specs: dict[str, tuple[torch.dtype, list[int]]]
) -> None:
    tensors = {name: filled(dtype, *shape) for name, (dtype, shape) in specs.items()}
    folder = tmp_path_factory.mktemp("files")
    theirs, ours = both(tensors, {"format": "pt"}, folder)
    assert ours == theirs
    with TensorFile(folder / "theirs.safetensors") as file:
        assert (file.specs, file.metadata) == (specs_of(tensors), {"format": "pt"})
        assert all(same_bytes(file[name], tensor) for name, tensor in tensors.items())


def test_a_view_is_written_as_it_reads(tmp_path: Path) -> None:
    whole = torch.randn(6, 8)
    views = {"rows": whole[::2], "turned": whole.T, "part": whole[1:3, 2:5], "one": whole[0, 0]}
    write_tensors(tmp_path / "x.safetensors", specs_of(views), views.__getitem__)
    for name, tensor in load_file(tmp_path / "x.safetensors").items():
        assert torch.equal(tensor, views[name])


def test_the_head_tells_the_size_before_any_tensor(tmp_path: Path) -> None:
    tensors = {"a": filled(torch.float16, 7), "b": filled(torch.int8, 3)}
    write_tensors(tmp_path / "x.safetensors", specs_of(tensors), tensors.__getitem__, {"k": "v", "l": "w"})
    head = file_head(specs_of(tensors), {"k": "v", "l": "w"})
    assert (tmp_path / "x.safetensors").stat().st_size == len(head) + 17
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"k": "v", "l": "w"}


def test_tensors_are_read_once_each_in_the_order_of_the_file(tmp_path: Path) -> None:
    tensors = {"b": filled(torch.int8, 2), "a": filled(torch.int8, 2), "z": filled(torch.float32, 2)}
    asked: list[str] = []
    steps = writing_tensors(tmp_path / "x", specs_of(tensors), lambda name: asked.append(name) or tensors[name])
    assert next(steps) == "z"
    assert asked == ["z"]
    assert list(steps) == ["a", "b"]
    assert asked == stored_order(specs_of(tensors)) == ["z", "a", "b"]


def test_what_is_stopped_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {"a": filled(torch.int8, 2), "b": filled(torch.int8, 2)}
    path.write_bytes(b"old")
    steps = writing_tensors(path, specs_of(tensors), tensors.__getitem__)
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert [item.name for item in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("wrong", [filled(torch.int16, 2), filled(torch.int8, 3)])
def test_a_tensor_that_is_not_its_spec_is_refused(tmp_path: Path, wrong: Tensor) -> None:
    with pytest.raises(StoreError, match=r"a is torch.*the file wants torch.int8 \[2\]"):
        write_tensors(tmp_path / "x", {"a": (torch.int8, (2,))}, lambda _: wrong)
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_noticed_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_file.shutil, "disk_usage", lambda _: Usage(10, 10, 9))
    with pytest.raises(StoreError, match=r"needs .* bytes and its disk has 9 free"):
        write_tensors(tmp_path / "x", {"a": (torch.int8, (2,))}, pytest.fail)


def test_a_disk_that_fills_up_meanwhile_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tensor_file.os, "write", full)
    with pytest.raises(StoreError, match=r"cannot be written \(No space left on device\)"):
        write_tensors(tmp_path / "x", {"a": (torch.int8, (2,))}, lambda _: filled(torch.int8, 2))
    assert not list(tmp_path.iterdir())


def test_a_write_may_take_several_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, tensor = os.write, torch.randn(100)
    monkeypatch.setattr(tensor_file.os, "write", lambda descriptor, data: real(descriptor, data[:7]))
    write_tensors(tmp_path / "x.safetensors", {"a": (torch.float32, (100,))}, lambda _: tensor)
    assert torch.equal(load_file(tmp_path / "x.safetensors")["a"], tensor)


def test_flush_takes_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    flush(tmp_path / "x")
    flush(tmp_path)
    with pytest.raises(FileNotFoundError):
        flush(tmp_path / "gone")
