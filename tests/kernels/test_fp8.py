"""Products in float8: torch's own on the CPU against float64, the error that float8 must make, no more; fallbacks."""

import warnings

import pytest
import torch
from core_cases import gaussian

from sdvq_core.bitpack import pack
from sdvq_core.kernels import Packed, codebook_rows, fp8, fp8_products, linear, ways
from sdvq_core.kernels.fp8 import FLOAT8, fp8_linear, obstacle

GPU = "sdvq_core.kernels.fp8.device_obstacle"


def case(rows=64, groups=8, books=3, bits=8, size=8, dtype=torch.bfloat16):
    """x, a stored weight, and the weight in float64."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(2**bits, (books, rows * groups), generator=generator)
    codebooks = torch.randn(books, 2**bits, size, generator=generator).half()
    scale = (torch.rand(rows, 1, generator=generator) + 0.1).half() * 1e-2
    exact = sum(book[code] for book, code in zip(codebooks.double(), codes, strict=True)).reshape(rows, -1)
    stored = Packed(torch.stack([pack(code, bits) for code in codes]), bits, codebooks, scale, 0, groups)
    return gaussian((48, groups * size), 1, 1.0).to(dtype), stored, exact * scale.double()


def product(x, weight, bias=None):
    return fp8_linear(x, weight.codes, weight.bits, weight.books, weight.scale, weight.groups, bias)


def relative(got, exact):
    return float((got.double() - exact).norm() / exact.norm())


@pytest.fixture
def fresh(monkeypatch):
    monkeypatch.setattr(ways, "_FAILED", set())
    ways.warn_exact.cache_clear()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("sizes", [(64, 8, 3, 8, 8), (16, 4, 1, 4, 4), (80, 40, 2, 9, 8)], ids=str)
def test_the_product_has_the_error_of_float8(sizes, dtype):
    x, weight, exact = case(*sizes, dtype=dtype)
    got = product(x, weight)
    assert got.dtype == dtype
    assert 0.01 < relative(got, x.double() @ exact.T) < 0.05, "half of 2^-3 at the most, for each factor"
    bias = gaussian((len(exact),), 2, 1.0).to(dtype)
    assert torch.equal(product(x, weight, bias), got + bias)


def test_rows_of_any_size_use_the_whole_range():
    """Rows of x and of the weight that are a million times as large as others are as exact."""
    x, weight, exact = case()
    x[::2] *= 1e6
    x[1] = 0
    want = x.double() @ exact.T
    errors = (product(x, weight).double() - want).norm(dim=1) / want.norm(dim=1).clamp_min(1e-9)
    assert float(errors.max()) < 0.06
    large = Packed(weight.codes, weight.bits, weight.books * 64, weight.scale, 0, weight.groups)
    assert torch.equal(product(x, large), 64 * product(x, weight))


def test_codebooks_of_zeros_and_of_one_huge_entry_stay_finite():
    x, weight, _ = case()
    nothing = Packed(weight.codes, 8, torch.zeros_like(weight.books), weight.scale, 0, weight.groups)
    assert float(product(x, nothing).abs().max()) == 0
    weight.books[0, 3] = 65000
    assert torch.isfinite(product(x, weight)).all()


def test_weights_are_rounded_once_to_float8():
    _, weight, _ = case()
    ones = torch.full((64, 1), 8.0)
    arrays = (weight.codes, 8, weight.books, ones, 0, weight.groups)
    rows = codebook_rows(*arrays, FLOAT8)
    assert torch.equal(rows.float(), codebook_rows(*arrays, torch.float32).to(FLOAT8).float())


def test_off_unless_it_is_asked_for(monkeypatch, fresh):
    monkeypatch.setattr(GPU, lambda device: "")
    x, weight, exact = case()
    decode = lambda: exact.bfloat16()  # noqa: E731
    plain = linear(x, weight, None, decode)
    with fp8_products():
        assert torch.equal(linear(x[None], weight, None, decode)[0], product(x, weight))
    assert torch.equal(linear(x, weight, None, decode), plain)
    assert not torch.equal(plain, product(x, weight))


@pytest.mark.parametrize(
    ("capability", "words"),
    [((8, 6), "need compute capability 8.9, this GPU has 8.6"), ((8, 9), ""), ((9, 0), ""), (None, "need a CUDA GPU")],
)
def test_hardware_without_it_is_named(capability, words, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    said = fp8.device_obstacle(torch.device("cpu" if capability is None else "cuda"))
    assert (words in said) if words else not said


def test_where_there_is_none_the_exact_product_and_one_warning(fresh):
    x, weight, exact = case()
    with fp8_products(), pytest.warns(UserWarning, match="not computed in float8: .* need a CUDA GPU") as caught:
        found = [linear(x, weight, None, lambda: exact.bfloat16()) for _ in range(2)]
    assert len(caught) == 1
    assert all(torch.equal(one, x @ exact.bfloat16().T) for one in found)


def test_a_product_that_fails_is_exact_and_warns_once(monkeypatch, fresh):
    monkeypatch.setattr(GPU, lambda device: "")
    monkeypatch.setattr(torch, "_scaled_mm", lambda *_, **__: exec("raise RuntimeError('no such kernel')"))
    x, weight, exact = case()
    with fp8_products(), pytest.warns(UserWarning, match=r"float8 fails \(no such kernel\)") as caught:
        found = [linear(x, weight, None, lambda: exact.bfloat16()) for _ in range(2)]
    assert len(caught) == 1
    assert all(torch.equal(one, x @ exact.bfloat16().T) for one in found)


def test_products_that_have_no_float8_say_why():
    x = torch.zeros(2, 64, dtype=torch.bfloat16)
    assert obstacle(x, 32, 64, 0, None) == ""
    assert "one for every 64 weights" in obstacle(x, 32, 64, 64, None)
    assert "a weight is [24, 64]" in obstacle(x, 24, 64, 0, None)
    assert "a weight is [32, 64]" in obstacle(x, 32, 72, 0, None), "padded rows"
    assert "got torch.float32" in obstacle(x.float(), 32, 64, 0, None)
    assert "no gradient" in obstacle(x.clone().requires_grad_(), 32, 64, 0, None)
    with torch.no_grad():
        assert obstacle(x.clone().requires_grad_(), 32, 64, 0, None) == ""
    with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings(action="error"):
        assert "without autocast" in obstacle(x, 32, 64, 0, None)
