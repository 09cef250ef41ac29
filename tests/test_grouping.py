"""Weights <-> groups: identities for any shape, and VQDM's order (a group is d input channels at one tap)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdvq_core.errors import ConfigError
from sdvq_core.grouping import from_groups, from_rows, groups_per_row, row_length, taps, to_groups, to_rows

SHAPES = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(1, 21)),
    st.tuples(st.integers(1, 5), st.integers(1, 21), st.integers(1, 3), st.integers(1, 3)),
)


def numbered(shape) -> torch.Tensor:
    return torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)


@settings(max_examples=150, deadline=None)
@given(shape=SHAPES, d=st.sampled_from([1, 2, 4, 8, 16]))
def test_from_groups_inverts_to_groups(shape, d):
    weight = numbered(shape)
    groups = to_groups(weight, d)
    assert groups.shape == (shape[0], groups_per_row(shape, d), d)
    assert torch.equal(from_groups(groups, shape), weight)
    assert torch.equal(from_rows(to_rows(weight), shape), weight)
    assert to_rows(weight).shape == (shape[0], row_length(shape))


@settings(max_examples=100, deadline=None)
@given(shape=SHAPES, d=st.sampled_from([1, 2, 4, 8]))
def test_padding_is_zero_and_nothing_is_lost(shape, d):
    weight = numbered(shape) + 1
    groups = to_groups(weight, d)
    assert int((groups == 0).sum()) == groups.numel() - weight.numel()
    assert torch.equal(groups[groups != 0].sort().values, weight.flatten())


@pytest.mark.parametrize("shape", [(3, 16, 3, 3), (2, 11, 1, 3), (4, 24)], ids=str)
def test_a_group_is_neighbouring_channels_at_one_tap(shape):
    d, weight = 8, numbered(shape)
    groups = to_groups(weight, d)
    flat = weight.reshape(shape[0], shape[1], -1)  # [O, I, T]
    per_tap = -(-shape[1] // d)
    for row in range(shape[0]):
        for index in range(groups.shape[1]):
            tap, first = index // per_tap, index % per_tap * d
            expected = flat[row, first : first + d, tap]
            assert torch.equal(groups[row, index, : len(expected)], expected)


def test_taps_and_lengths():
    assert (taps((8, 4)), row_length((8, 4)), groups_per_row((8, 4), 8)) == (1, 4, 1)
    assert (taps((8, 20, 3, 3)), row_length((8, 20, 3, 3)), groups_per_row((8, 20, 3, 3), 8)) == (9, 180, 27)


@pytest.mark.parametrize("shape", [(3,), (3, 4, 5), (1, 2, 3, 4, 5)], ids=str)
def test_other_ranks_are_refused(shape):
    with pytest.raises(ConfigError, match=r"\[O, I\] or \[O, I, kh, kw\]"):
        to_groups(torch.zeros(shape), 4)
