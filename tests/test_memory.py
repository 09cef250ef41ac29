"""How much is free, in a container as well, and which errors say that nothing is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sdvq_core import memory

CPU = torch.device("cpu")
V2 = "sys/fs/cgroup"


def second(root: Path, path: str, limit: str, used: int = 700, inactive: int = 100, mount: str = V2) -> None:
    """A control group of version 2 as the kernel shows it."""
    folder = root / mount / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {inactive}\n")


def first(root: Path, path: str, limit: int, used: int = 700, inactive: int = 100) -> None:
    """A control group of version 1."""
    folder = root / "sys/fs/cgroup/memory" / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"inactive_file 1\ntotal_inactive_file {inactive}\n")


def belonging(root: Path, *lines: str) -> None:
    """What /proc says about the groups of this process."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a file system that is still empty, on a system with 10,000 bytes free."""
    monkeypatch.setattr(memory, "_ROOT", tmp_path)
    monkeypatch.setattr(memory, "_free_in_system", lambda: 10_000)
    return tmp_path


@pytest.mark.parametrize(
    ("limit", "used", "free"), [("1000", 700, 400), ("1000", 5000, 0), ("max", 700, 10_000), ("99999999", 700, 10_000)]
)
def test_a_container_may_allow_less_than_the_system_has(root, limit, used, free):
    belonging(root, "0::/")
    second(root, "", limit, used)
    assert memory.free_nbytes(CPU) == free


@pytest.mark.parametrize(
    ("limits", "free"),
    [
        ({"a/b": "1000"}, 400), ({"a": "1000", "a/b": "max"}, 400), ({"a": "1000", "a/b": "900"}, 300),
        ({"": "900", "a": "1000", "a/b": "5000"}, 300), ({"a/c": "1000", "b": "1000"}, 10_000), ({"a": "1000"}, 400),
    ],
    ids=str,
)  # fmt: skip
def test_the_tightest_of_nested_groups_counts(root, limits, free):
    belonging(root, "0::/a/b")
    for path, limit in limits.items():
        second(root, path, limit)
    assert memory.free_nbytes(CPU) == free


@pytest.mark.parametrize(
    ("limits", "free"),
    [
        ({"docker/1": 1000}, 400), ({"docker": 900, "docker/1": 1000}, 300), ({"": 1000}, 400),
        ({"": 2**63 - 4096, "docker/1": 2**63 - 4096}, 10_000),
    ],
    ids=str,
)  # fmt: skip
def test_groups_of_version_1_count_too(root, limits, free):
    """From inside a container its own group is the topmost one, whatever it is called outside."""
    belonging(root, "12:cpu,cpuacct:/other", "5:memory,hugetlb:/docker/1", "1:name=systemd:/docker/1")
    for path, limit in limits.items():
        first(root, path, limit)
    first(root, "other", 10)
    assert memory.free_nbytes(CPU) == free


def test_both_versions_at_once(root):
    belonging(root, "5:memory:/a", "0::/b")
    first(root, "a", 1000)
    second(root, "b", "900", mount="sys/fs/cgroup/unified")
    assert memory.free_nbytes(CPU) == 300


def test_of_a_group_out_of_sight_the_topmost_one_is_looked_at(root):
    belonging(root, "0::/../a")
    second(root, "", "1000")
    second(root, "../a", "1")
    assert memory.free_nbytes(CPU) == 400


@pytest.mark.parametrize("lines", [(), ("nonsense",), ("0::/a:b",), ("0::",)], ids=str)
def test_odd_lines_limit_nothing(root, lines):
    belonging(root, *lines)
    assert memory.free_nbytes(CPU) == 10_000


def test_without_control_groups_the_system_counts(root):
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
