"""A compiled kernel that fails is replaced by torch: the same numbers, one warning, and no second try."""

import os
import subprocess
import warnings

import pytest
import torch

from sdvq_core.bitpack import pack
from sdvq_core.kernels import (
    affine_rows,
    beam_search,
    beam_search_reference,
    codebook_rows,
    decode,
    gaussian_code,
    hadamard,
    nearest,
    rotate,
    trellis_rows,
    unrotate,
    viterbi,
    viterbi_reference,
    ways,
)

ONES = torch.ones(4, 1)
CODES = pack(torch.arange(16) % 16, 4)
BOOKS = torch.randn(1, 16, 8, generator=torch.Generator().manual_seed(0))
POINTS = torch.randn(40, 8, generator=torch.Generator().manual_seed(1))
TABLE = gaussian_code(2, 4)
CALLS = {
    "codebook": (
        lambda: codebook_rows(CODES[None], 4, BOOKS, ONES, 0, 4, torch.float16),
        lambda: decode.codebook_rows_reference(CODES[None], 4, BOOKS, ONES, 0, 4, torch.float16),
    ),
    "affine": (
        lambda: affine_rows(CODES, 4, ONES, ONES, 4, torch.float16),
        lambda: decode.affine_rows_reference(CODES, 4, ONES, ONES, 4, torch.float16),
    ),
    "trellis": (
        lambda: trellis_rows(CODES[:4], 2, TABLE, 4, (4, 4)),
        lambda: decode.trellis_rows_reference(CODES[:4], 2, TABLE, 4, (4, 4)),
    ),
    "search": (lambda: beam_search(POINTS, BOOKS, None, 4), lambda: beam_search_reference(POINTS, BOOKS, None, 4)),
    "nearest": (lambda: nearest(POINTS, BOOKS[0]), lambda: beam_search_reference(POINTS, BOOKS, None, 1)[0]),
    "rotation": (lambda: unrotate(POINTS, 3), lambda: hadamard._hadamard(POINTS) * hadamard._signs(POINTS, 3)),
    "viterbi": (
        lambda: viterbi(POINTS, POINTS.abs(), TABLE, 2),
        lambda: viterbi_reference(POINTS, POINTS.abs(), TABLE, 2),
    ),
}


@pytest.fixture
def fresh(monkeypatch):
    """No failure is remembered, and none is after the test."""
    monkeypatch.setattr(ways, "_FAILED", set())
    ways.warn_slow.cache_clear()
    yield
    ways.warn_slow.cache_clear()


@pytest.fixture
def unusable(monkeypatch, fresh):
    """Triton is installed and no driver is: tensors on the CPU go where those on a GPU go, and Triton finds none."""
    kernels = pytest.importorskip("sdvq_core.kernels.decode_triton")
    if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("Triton works here")
    monkeypatch.setitem(ways.WAYS, "cpu", "triton")
    monkeypatch.setattr(kernels, "_unsuitable", lambda device, capability: None)


@pytest.mark.parametrize("name", CALLS)
def test_triton_without_a_driver_is_torch_with_one_warning(name, unusable):
    run, reference = CALLS[name]
    with pytest.warns(UserWarning, match=r"plain torch, which is slower: triton fails \(.*drivers") as caught:
        found = run()
    assert len(caught) == 1
    assert torch.equal(found, reference())
    with warnings.catch_warnings(action="error"):
        assert torch.equal(run(), found)


def test_one_warning_for_all_that_fails_for_one_reason(unusable):
    with pytest.warns(UserWarning, match="triton fails") as caught:
        found = [run() for run, _ in CALLS.values()]
    assert len(caught) == 1
    assert all(torch.equal(one, reference()) for one, (_, reference) in zip(found, CALLS.values(), strict=True))


def test_a_rotation_that_no_program_holds_goes_to_torch_with_one_warning(unusable):
    rows = torch.ones(1, 1 << 14)
    with pytest.warns(UserWarning, match="rotations of 16384 entries in torch.float32, where 8192") as caught:
        found = [rotate(rows, 1) for _ in range(2)]
    assert len(caught) == 1
    assert torch.equal(*found)
    assert torch.equal(found[0], hadamard._hadamard(rows * hadamard._signs(rows, 1)))


def failing(error, calls):
    def run():
        calls.append(1)
        raise error

    return run


def test_a_kernel_that_fails_is_not_tried_again_and_others_are(fresh):
    calls = []
    run = failing(RuntimeError("Failed to find C compiler. Please specify via CC.\nand more"), calls)
    with pytest.warns(UserWarning, match=r"triton fails \(Failed to find C compiler. Please specify via CC.\)$"):
        assert ways.attempt(("triton", "a", 1), run) is None
    with warnings.catch_warnings(action="error"):
        assert ways.attempt(("triton", "a", 1), run) is None
        assert ways.attempt(("triton", "a", 2), run) is None, "warned of this reason before"
    assert len(calls) == 2
    assert ways.attempt(("triton", "b"), lambda: 3) == 3


def test_memory_that_runs_out_is_raised_and_the_kernel_is_kept(fresh):
    with pytest.raises(torch.OutOfMemoryError):
        ways.attempt(("triton", "a"), failing(torch.OutOfMemoryError("CUDA out of memory"), []))
    assert ways.attempt(("triton", "a"), lambda: 3) == 3


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (subprocess.CalledProcessError(1, ["bin/gcc", "main.c"]), "gcc ended with status 1"),
        (subprocess.CalledProcessError(2, "ptxas -v x"), "ptxas ended with status 2"),
        (ValueError(), "ValueError"),
        (ValueError("one\ntwo"), "one"),
    ],
)
def test_a_reason_is_one_line_without_passing_names(error, words):
    assert ways.reason(error) == words


def test_a_device_without_kernels_is_no_reason_to_warn(fresh):
    with warnings.catch_warnings(action="error"):
        ways.warn_obstacle(torch.device("meta"))
        assert rotate(POINTS.to("meta"), 0).shape == POINTS.shape
