"""Packed codes to rows: the compiled kernels against the torch reference, which is checked against float64 here."""

import itertools
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdvq_core.bitpack import pack
from sdvq_core.kernels import decode, gaussian_code, hadamard, rotate, unrotate, ways
from sdvq_core.kernels.decode import affine_rows, codebook_rows, trellis_rows

numba = pytest.importorskip("sdvq_core.kernels.decode_numba")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def codes(count: int, bits: int, seed: int) -> torch.Tensor:
    return torch.randint(2**bits, (count,), generator=generator(seed))


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed)).half()


def codebook_case(books, bits, size, rows, groups, run, seed):
    """Arguments of `codebook_rows`, and its answer in float64 by loops over the definition."""
    plain = torch.stack([codes(rows * groups, bits, seed + book) for book in range(books)])
    tables = normal(books, 2**bits, size, seed=seed)
    runs = -(-groups * size // run) if run else 1
    scale = normal(rows, runs, seed=seed + 1)
    wanted = torch.zeros(rows, groups * size, dtype=torch.float64)
    for row, group, book in itertools.product(range(rows), range(groups), range(books)):
        wanted[row, group * size : (group + 1) * size] += tables[book, plain[book, row * groups + group]].double()
    factors = scale.double().repeat_interleave(run or groups * size, 1)[:, : groups * size]
    packed = torch.stack([pack(stream, bits) for stream in plain])
    return (packed, bits, tables, scale, run, groups), wanted * factors


@settings(deadline=None, max_examples=60)
@given(
    books=st.integers(1, 4), bits=st.integers(1, 10), size=st.sampled_from((1, 2, 4, 8)),
    place=st.tuples(st.integers(1, 9), st.integers(1, 12)), run=st.sampled_from((0, 8, 16)), seed=st.integers(0, 9),
    dtype=st.sampled_from(DTYPES),
)  # fmt: skip
def test_additive_codes_by_kernel_by_reference_and_by_definition(books, bits, size, place, run, seed, dtype):
    case, wanted = codebook_case(books, bits, size, *place, run, seed)
    reference = decode.codebook_rows_reference(*case, dtype)
    torch.testing.assert_close(reference.double(), wanted, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    assert torch.equal(numba.codebook_rows(*case, dtype), reference)


@settings(deadline=None, max_examples=40)
@given(
    bits=st.integers(1, 16), rows=st.integers(1, 9), runs=st.integers(1, 5), size=st.sampled_from((1, 3, 8, 64)),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_affine_codes_by_kernel_by_reference_and_by_definition(bits, rows, runs, size, seed):
    plain = codes(rows * runs * size, bits, seed)
    scale, offset = normal(rows, runs, seed=seed), normal(rows, runs, seed=seed + 1)
    wanted = plain.reshape(rows, runs, size) * scale.double()[..., None] + offset.double()[..., None]
    case = (pack(plain, bits), bits, scale, offset, size, torch.float32)
    reference = decode.affine_rows_reference(*case)
    torch.testing.assert_close(reference.double(), wanted.reshape(rows, -1), rtol=1e-6, atol=1e-6)
    assert torch.equal(numba.affine_rows(*case), reference)


@settings(deadline=None, max_examples=40)
@given(
    bits=st.integers(1, 4), spare=st.integers(1, 8), circles=st.integers(1, 5), places=st.integers(3, 40),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_trellis_codes_by_kernel_by_reference_and_by_definition(bits, spare, circles, places, seed):
    states = bits + spare
    plain, table = codes(circles * places, bits, seed).reshape(circles, places), gaussian_code(bits, states)
    windows = -(-states // bits)
    wanted = torch.empty(circles, places)
    for circle, place in itertools.product(range(circles), range(places)):
        state = sum(int(plain[circle, (place - back) % places]) << (bits * back) for back in range(windows))
        wanted[circle, place] = table[state % 2**states]
    case = (pack(plain.flatten(), bits), bits, table, places, (places, circles))
    assert torch.equal(decode.trellis_rows_reference(*case), wanted.reshape(circles, places).T)
    assert torch.equal(numba.trellis_rows(*case), wanted.reshape(circles, places).T)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 8, 24, 40, 512, 1000])
def test_compiled_rotation_is_the_reference_bit_for_bit(length, monkeypatch):
    rows = torch.randn(7, length, generator=generator(length))
    turned, back = rotate(rows, 5), unrotate(rows, 5)
    monkeypatch.setattr(hadamard, "way", lambda device: "torch")
    assert torch.equal(turned, rotate(rows, 5))
    assert torch.equal(back, unrotate(rows, 5))


def test_real_shapes_on_two_threads(use_threads):
    use_threads(2)
    streams = torch.stack([pack(codes(1280 * 160, 8, seed), 8) for seed in range(3)])
    case = (streams, 8, normal(3, 256, 8, seed=1), normal(1280, 1, seed=2), 0, 160, torch.float32)
    assert torch.equal(codebook_rows(*case), decode.codebook_rows_reference(*case))
    rows = (
        pack(codes(1280 * 1280, 3, 4), 3),
        3,
        normal(1280, 20, seed=5),
        normal(1280, 20, seed=6),
        64,
        torch.bfloat16,
    )
    assert torch.equal(affine_rows(*rows), decode.affine_rows_reference(*rows))
    circles = (pack(codes(640 * 1280, 3, 4), 3), 3, gaussian_code(3, 12), 128, (640, 1280))
    assert torch.equal(trellis_rows(*circles), decode.trellis_rows_reference(*circles))


def test_runs_that_end_inside_a_code_go_to_the_reference_with_one_warning():
    ways.warn_slow.cache_clear()
    case, wanted = codebook_case(2, 8, 8, 3, 2, 12, 0)
    with pytest.warns(UserWarning, match="plain torch, which is slower: runs of 12 weights end inside a code"):
        found = codebook_rows(*case, torch.float32)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        codebook_rows(*case, torch.float32)


def _refuse(name: str) -> None:
    raise ImportError("Numba needs NumPy 2.3 or less")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (("find_spec", lambda name: None), "numba is not installed"),
        (("import_module", _refuse), r"numba cannot be imported \(Numba needs NumPy 2.3 or less\)"),
    ],
    ids=["absent", "broken"],
)
def test_without_numba_the_reference_decodes_and_says_so(monkeypatch, broken, reason):
    ways.warn_slow.cache_clear()
    case, _ = codebook_case(2, 8, 8, 3, 2, 0, 0)
    fast = codebook_rows(*case, torch.float32)
    assert ways.way(torch.device("cpu")) == "numba"
    monkeypatch.setattr(ways, *broken)
    ways.missing.cache_clear()
    assert ways.way(torch.device("cpu")) == "torch"
    with pytest.warns(UserWarning, match=reason):
        assert torch.equal(codebook_rows(*case, torch.float32), fast)
    ways.missing.cache_clear()


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("run", [0, 32])
def test_single_weights_are_taken_eight_at_a_time(bits, run):
    case, wanted = codebook_case(1, bits, 1, 5, 72, run, bits)
    found = numba.codebook_rows(*case, torch.float32)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-6)
    assert torch.equal(numba.codebook_rows(*case, torch.bfloat16), found.bfloat16())


@pytest.mark.parametrize("default", [torch.float64, torch.float16])
def test_the_process_default_dtype_changes_nothing(default):
    codebook, _ = codebook_case(2, 8, 8, 3, 4, 0, 0)
    affine = (pack(codes(5 * 64, 4, 1), 4), 4, normal(5, 2, seed=2), normal(5, 2, seed=3), 32, torch.float32)
    circles = (pack(codes(128, 3, 4), 3), 3, gaussian_code(3, 12), 64, (64, 2))
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        found = codebook_rows(*codebook, torch.float32), affine_rows(*affine), trellis_rows(*circles)
    finally:
        torch.set_default_dtype(before)
    wanted = (
        decode.codebook_rows_reference(*codebook, torch.float32),
        decode.affine_rows_reference(*affine),
        decode.trellis_rows_reference(*circles),
    )
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_codes_of_three_weights_are_not_for_triton():
    assert "no power of two" in decode.obstacle("triton", 3, 0)
    assert decode.obstacle("triton", 4, 0) == decode.obstacle("numba", 3, 3) == ""
