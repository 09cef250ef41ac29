"""How much is free, in a container as well, and which errors say that nothing is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sdvq_core import memory

CPU = torch.device("cpu")


def group(folder: Path, limit: str, used: int = 700, inactive: int = 100) -> Path:
    """A control group as the kernel shows it."""
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {inactive}\n")
    return folder


@pytest.mark.parametrize(
    ("limit", "used", "free"), [("1000", 700, 400), ("1000", 5000, 0), ("max", 700, 10_000), ("99999999", 700, 10_000)]
)
def test_a_container_may_allow_less_than_the_system_has(tmp_path, monkeypatch, limit, used, free):
    monkeypatch.setattr(memory, "_CGROUP", group(tmp_path, limit, used))
    monkeypatch.setattr(memory, "_free_in_system", lambda: 10_000)
    assert memory.free_nbytes(CPU) == free


def test_without_control_groups_the_system_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "none")
    monkeypatch.setattr(memory, "_free_in_system", lambda: 10_000)
    assert memory.free_nbytes(CPU) == 10_000


def test_this_machine_has_some():
    assert 1 << 20 < memory.free_nbytes(CPU) < 1 << 50


def test_what_torch_keeps_on_a_gpu_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 300)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    assert memory.free_nbytes(torch.device("cuda")) == 1200


def test_torch_says_on_the_cpu_that_memory_ran_out():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert memory.is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("error", "is_that"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_that_say_so(error, is_that):
    assert memory.is_out_of_memory(error) is is_that
