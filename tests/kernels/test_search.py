"""Nearest codewords and beam search: the slow definition, the torch reference, and the compiled search against both."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdvq_core.kernels import (
    additive_decode_reference,
    beam_search,
    beam_search_reference,
    chunks,
    nearest,
    nearest_reference,
    search,
    ways,
)

COUNT, D, K = 600, 4, 16


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


WEIGHTS = {
    "none": None,
    "per-point": normal(COUNT, 1, seed=2).abs() + 0.1,
    "per-element": normal(COUNT, D, seed=3).abs() + 0.1,
}


def cost(x, centres, weights):
    """The whole [N, K] matrix, as the docstring of `kmeans` writes it."""
    mass = torch.ones_like(x) if weights is None else weights.expand_as(x)
    return (mass[:, None] * (x[:, None] - centres[None]).square()).sum(2)


def error(points, books, codes, weights=None):
    mass = 1 if weights is None else weights
    return (mass * (points - additive_decode_reference(codes, books)).square()).sum(1)


@pytest.mark.parametrize("find", [nearest, nearest_reference])
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_nearest_is_the_cheapest(weights, find):
    x, centres = normal(COUNT, D, seed=1), normal(K, D, seed=4)
    matrix = cost(x, centres, weights)
    chosen = matrix.gather(1, find(x, centres, weights)[:, None])[:, 0]
    torch.testing.assert_close(chosen, matrix.amin(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_chunks_do_not_show(weights, monkeypatch):
    x, centres = normal(COUNT, D, seed=1), normal(K, D, seed=4)
    whole, paths = nearest_reference(x, centres, weights), beam_search_reference(x, centres[None], weights, 3)
    monkeypatch.setattr(search, "chunks", lambda count, row, budget=0: chunks(count, row, budget=7 * row))
    assert torch.equal(nearest_reference(x, centres, weights), whole)
    assert torch.equal(beam_search_reference(x, centres[None], weights, 3), paths)


def test_chunks_cover_the_range_within_the_budget():
    found = list(chunks(1_600_000, 4 * 256))
    assert found[0].start == 0
    assert found[-1].stop == 1_600_000
    assert all(a.stop == b.start for a, b in itertools.pairwise(found))
    assert max(part.stop - part.start for part in found) * 4 * 256 <= search.CHUNK_NBYTES
    assert [part.stop - part.start for part in chunks(3, 10**12)] == [1, 1, 1]
    assert list(chunks(0, 4)) == []


@pytest.mark.parametrize("find", [beam_search, beam_search_reference])
def test_a_beam_that_keeps_everything_finds_the_best_pair(find):
    x, books = normal(200, D, seed=1), normal(2, K, D, seed=4)
    pairs = (books[0][:, None] + books[1]).reshape(-1, D)
    torch.testing.assert_close(error(x, books, find(x, books, None, K)), cost(x, pairs, None).amin(1))


@settings(deadline=None, max_examples=60)
@given(
    books=st.integers(1, 4), entries=st.integers(1, 300), size=st.sampled_from((1, 2, 4, 8)), beam=st.integers(1, 20),
    count=st.integers(0, 90), seed=st.integers(0, 9), weighted=st.booleans(),
)  # fmt: skip
def test_the_compiled_search_makes_the_reference_s_errors(books, entries, size, beam, count, seed, weighted):
    compiled = pytest.importorskip("sdvq_core.kernels.search_numba")
    x, tables = normal(count, size, seed=seed), normal(books, entries, size, seed=seed + 1)
    weights = normal(count, size, seed=seed + 2).abs() + 0.05 if weighted else None
    found = compiled.beam_search(x, tables, beam, weights)
    wanted = beam_search_reference(x, tables, weights, beam)
    assert found.shape == (books, count)
    assert not count or int(found.max()) < entries
    made, least = error(x, tables, found, weights), error(x, tables, wanted, weights)
    assert ((made - least).abs() > 1e-4 + 1e-3 * least).sum() <= 2  # a tie at the edge of the beam may fall either way


def test_threads_and_slices_do_not_change_the_choice(use_threads):
    use_threads(1)
    x, books = normal(20_000, 16, seed=5)[::2, 3:11], normal(3, 256, 8, seed=6)
    one = beam_search(x, books, None, 8)
    use_threads(2)
    assert torch.equal(beam_search(x, books, None, 8), one)
    assert (one == beam_search_reference(x, books, None, 8)).all(0).float().mean() > 0.999


def test_points_without_a_nearest_entry_get_codes_that_exist():
    x = torch.full((3, 8), torch.nan)
    assert beam_search(x, normal(3, 256, 8), None, 8).unique().tolist() == [0]
    for bad in (torch.nan, torch.inf):
        found = beam_search(torch.full((3, 8), bad), normal(3, 5, 8), normal(3, 8).abs(), 20)
        assert bool(((found >= 0) & (found < 5)).all())


def test_what_no_compiled_search_takes_goes_to_the_reference_with_one_warning():
    ways.warn_slow.cache_clear()
    points, books = normal(5, 8).double(), normal(3, 16, 8).double()
    wanted = beam_search_reference(points, books, None, 4)
    with pytest.warns(UserWarning, match="plain torch, which is slower: points in torch.float64") as caught:
        found = [beam_search(points, books, None, 4) for _ in range(2)]
    assert len(caught) == 1
    assert all(torch.equal(codes, wanted) for codes in found)
