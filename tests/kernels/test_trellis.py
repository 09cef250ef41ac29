"""Rotation, code table, trellis decode and Viterbi search against their definitions, place by place."""

import itertools

import pytest
import torch
from core_cases import gaussian

from sdvq_core.kernels import (
    gaussian_code,
    hadamard_block,
    rotate,
    scramble,
    trellis_decode,
    unrotate,
    viterbi,
    viterbi_reference,
)


def test_the_hash_is_the_published_one_and_a_bijection():
    assert scramble(torch.tensor([0, 1])).tolist() == [0, 0x514E28B7]  # MurmurHash3's fmix32
    assert len(scramble(torch.arange(1 << 16)).unique()) == 1 << 16


@pytest.mark.parametrize("length", [1, 2, 7, 12, 64, 96, 320])
def test_the_rotation_is_orthonormal_in_blocks_and_has_an_inverse(length):
    matrix = rotate(torch.eye(length), 3)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(length), rtol=0, atol=1e-6)
    block = hadamard_block(length)
    assert length % block == 0
    assert length % (2 * block)
    torch.testing.assert_close(matrix.abs().amax(1), torch.full((length,), block**-0.5), rtol=1e-6, atol=0)
    rows = gaussian((3, length))
    torch.testing.assert_close(unrotate(rotate(rows, 3), 3), rows, rtol=1e-5, atol=1e-7)
    assert length < 7 or not torch.equal(rotate(rows, 3), rotate(rows, 4))


def test_a_single_large_weight_is_spread_over_its_block():
    row = torch.zeros(1, 64)
    row[0, 5] = 8.0
    assert torch.equal(rotate(row, 0).abs(), torch.ones(1, 64))


@pytest.mark.parametrize("state_bits", [8, 12])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_the_code_is_gaussian_and_every_shared_part_spans_it(bits, state_bits):
    table = gaussian_code(bits, state_bits)
    assert torch.equal(table, table.half().float())
    assert float(table.square().mean()) == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(table.sort().values, -table.sort(descending=True).values, rtol=0, atol=1e-3)
    edges = torch.special.ndtri(torch.arange(1, 2**bits) / 2**bits)
    slices = torch.bucketize(table * 0.999, edges).reshape(-1, 2**bits).sort(1).values
    inner = (slices == torch.arange(2**bits)).all(1).float().mean()
    assert inner > 0.9, "one branch in each slice (some dithers sit on an edge)"


def test_the_code_never_changes():
    """Files depend on it."""
    assert gaussian_code(3, 12)[:6].tolist() == CODE
    assert gaussian_code(2, 4)[:4].tolist() == SMALL_CODE


CODE = [0.494140625, 0.1619873046875, 1.5498046875, 0.89404296875, -0.88037109375, -1.51953125]
SMALL_CODE = [-0.41845703125, -1.37109375, 1.05078125, 0.246826171875]


@pytest.mark.parametrize(("bits", "state_bits", "length"), [(3, 12, 9), (3, 8, 5), (2, 12, 6), (4, 10, 7), (1, 8, 8)])
def test_a_state_is_a_window_of_bits_around_the_circle(bits, state_bits, length):
    codes = torch.randint(2**bits, (3, length), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    table = gaussian_code(bits, state_bits)
    values = trellis_decode(codes, bits, table)
    for row, place in itertools.product(range(3), range(length)):
        stream = "".join(f"{code:0{bits}b}" for code in (codes[row].roll(length - 1 - place)).tolist())
        state = int((stream * 12)[-state_bits:], 2)
        assert values[row, place] == table[state]


CIRCLES = [(7, 200), (3, 12), (2, 17), (1, 128)]


@pytest.mark.parametrize("shape", CIRCLES, ids=str)
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_the_compiled_search_finds_the_codes_of_the_reference(bits, shape):
    pytest.importorskip("numba")
    target, mass = gaussian(shape, 1, 1.0), gaussian(shape, 2, 1.0).abs()
    mass[0] = 0
    table = gaussian_code(bits, 8)
    found = viterbi(target, mass, table, bits)
    assert torch.equal(found, viterbi_reference(target, mass, table, bits))
    assert torch.equal(found, viterbi(target.T.contiguous().T, mass, table, bits))


@pytest.mark.parametrize(("bits", "state_bits", "length"), [(1, 4, 10), (2, 4, 5), (2, 6, 6), (3, 6, 4), (4, 4, 3)])
def test_the_search_is_nearly_the_best_of_all_circles(bits, state_bits, length):
    """By trying every circle: exact given the bits at the seam, and within a few percent on the whole."""
    table, targets = gaussian_code(bits, state_bits), gaussian((16, length), 4, 1.0)
    every = torch.cartesian_prod(*[torch.arange(2**bits)] * length)  # [2^(kT), T]
    cost = (targets[:, None] - trellis_decode(every, bits, table)).square().sum(2)  # [16, 2^(kT)]
    found = viterbi(targets, torch.ones_like(targets), table, bits)
    got = (targets - trellis_decode(found, bits, table)).square().sum(1)
    assert got.sum() <= 1.15 * cost.amin(1).sum()
    kept = state_bits - bits
    place = torch.arange(length - 1, -1, -1) * bits
    number, numbers = (found.long() << place).sum(1), (every << place).sum(1)
    same_seam = (number % 2**kept)[:, None] == numbers % 2**kept
    best = torch.where(same_seam, cost, torch.inf).amin(1)
    torch.testing.assert_close(got, best, rtol=1e-5, atol=1e-6)


def test_heavier_places_are_coded_better():
    target = gaussian((64, 64), 5, 1.0)
    mass = torch.ones_like(target)
    mass[:, ::2] = 16
    table = gaussian_code(2, 8)
    error = (target - trellis_decode(viterbi(target, mass, table, 2), 2, table)).square()
    assert error[:, ::2].mean() < 0.7 * error[:, 1::2].mean()
