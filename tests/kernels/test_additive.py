"""Sums of codewords: the compiled kernel against torch, forwards and backwards."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdvq_core.kernels import additive_decode, additive_decode_reference

pytest.importorskip("numba")
from sdvq_core.kernels import additive_numba


def random_case(books, width, size, count, dtype=torch.int32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(2**width, (books, count), generator=generator).to(dtype)
    return codes, torch.randn(books, 2**width, size, generator=generator)


@settings(deadline=None, max_examples=25)
@given(
    books=st.integers(1, 4), width=st.integers(1, 8), size=st.sampled_from((2, 4, 8)), count=st.integers(1, 70),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_the_compiled_kernel_gives_the_reference_bit_for_bit(books, width, size, count, seed):
    codes, codebooks = random_case(books, width, size, count, seed=seed)
    assert torch.equal(additive_numba.decode(codes, codebooks), additive_decode_reference(codes, codebooks))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_every_dtype_of_codes_gives_the_same(dtype):
    codes, codebooks = random_case(3, 8, 8, 1001, dtype)
    assert torch.equal(additive_decode(codes, codebooks), additive_decode_reference(codes.int(), codebooks))


def test_slices_and_unaligned_memory_are_read_right():
    codes, codebooks = random_case(3, 8, 8, 4000)
    sliced, moved = codes[:, 1:3001:3], codebooks[:, :, 1:6]
    assert torch.equal(additive_decode(sliced, moved), additive_decode_reference(sliced.contiguous(), moved))


def test_threads_change_nothing():
    codes, codebooks = random_case(3, 8, 8, 200_001)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            values = torch.ones(200_001, 8).cumsum(0).div(200_001)
            found.append((additive_numba.decode(codes, codebooks), additive_numba.scatter(codes, values, 256)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("size", [4, 8])
@pytest.mark.parametrize("books", [1, 3])
def test_the_gradient_is_that_of_the_reference(books, size):
    codes, codebooks = random_case(books, 6, size, 5003)
    target = torch.randn(5003, size, generator=torch.Generator().manual_seed(1))
    gradients = []
    for decode in (additive_decode, additive_decode_reference):
        learnt = codebooks.double() if decode is additive_decode_reference else codebooks.clone()
        learnt.requires_grad_(True)
        (decode(codes, learnt) - target).square().sum().backward()
        gradients.append(learnt.grad.double())
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-4)


def test_double_precision_takes_the_reference():
    codes, codebooks = random_case(2, 4, 8, 33)
    assert additive_decode(codes, codebooks.double()).dtype == torch.float64
