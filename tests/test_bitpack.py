"""The bit stream: every width, awkward lengths, exact sizes, and a byte layout that never changes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdvq_core import bitpack
from sdvq_core.bitpack import pack, packed_nbytes, unpack
from sdvq_core.errors import ConfigError

WIDTHS = range(1, 17)


def random_codes(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 2**width, (count,), generator=torch.Generator().manual_seed(seed))


@settings(max_examples=120, deadline=None)
@given(width=st.sampled_from(WIDTHS), data=st.data())
def test_unpack_inverts_pack(width, data):
    codes = data.draw(st.lists(st.integers(0, 2**width - 1), max_size=70))
    packed = pack(torch.tensor(codes, dtype=torch.int64), width)
    assert packed.dtype == torch.uint8
    assert packed.numel() == -(-len(codes) * width // 8) == packed_nbytes(len(codes), width)
    assert unpack(packed, width, len(codes)).tolist() == codes


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("count", [1, 7, 8, 9, 63, 65, 1001])
def test_awkward_lengths(width, count):
    codes = random_codes(count, width)
    assert torch.equal(unpack(pack(codes, width), width, count), codes.int())


@pytest.mark.parametrize("width", WIDTHS)
def test_the_stream_is_the_one_that_the_docstring_defines(width):
    """Bit j of code i is bit i * width + j of the stream; bit k is bit k % 8 of byte k // 8."""
    codes = random_codes(37, width).tolist()
    stream = sum(code << (i * width) for i, code in enumerate(codes))
    expected = stream.to_bytes(packed_nbytes(len(codes), width), "little")
    assert bytes(pack(torch.tensor(codes), width).tolist()) == expected


@pytest.mark.parametrize(
    ("width", "codes", "stored"),
    [
        (1, [1, 0, 1, 1, 0, 0, 0, 1, 1], "8d01"),
        (3, [1, 2, 3, 4, 5, 6, 7, 0, 5], "d158 1f05"),
        (4, [1, 2, 15], "210f"),
        (5, [31, 0, 17], "1f44"),
        (8, [0, 255, 7], "00ff07"),
        (12, [0xABC, 0x123], "bc3a12"),
        (16, [0xBEEF, 1], "efbe0100"),
    ],
)
def test_golden_bytes(width, codes, stored):
    assert bytes(pack(torch.tensor(codes), width).tolist()) == bytes.fromhex(stored)
    assert unpack(torch.tensor(list(bytes.fromhex(stored)), dtype=torch.uint8), width, len(codes)).tolist() == codes


@pytest.mark.parametrize("width", [3, 5, 12, 16])
def test_blocks_do_not_show(width, monkeypatch):
    codes = random_codes(1000, width)
    whole = pack(codes, width)
    monkeypatch.setattr(bitpack, "_BLOCK", 64)
    assert torch.equal(pack(codes, width), whole)
    assert torch.equal(unpack(whole, width, 1000), codes.int())


def test_any_integer_dtype_and_any_shape():
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64):
        assert torch.equal(pack(torch.tensor([[1, 2], [3, 0]], dtype=dtype), 2), torch.tensor([0b00111001]).byte())


def test_nothing_packs_to_nothing():
    for width in WIDTHS:
        assert pack(torch.empty(0, dtype=torch.int64), width).numel() == 0
        assert unpack(torch.empty(0, dtype=torch.uint8), width, 0).numel() == 0


def test_packing_leaves_the_codes_alone():
    codes = torch.tensor([1, 2, 3], dtype=torch.uint8)
    pack(codes, 8)[0] = 9
    assert codes.tolist() == [1, 2, 3]


@pytest.mark.parametrize("width", [0, 17, -1])
def test_a_width_out_of_range_is_refused(width):
    with pytest.raises(ConfigError, match="1 to 16"):
        pack(torch.tensor([0]), width)
    with pytest.raises(ConfigError, match="1 to 16"):
        unpack(torch.zeros(1, dtype=torch.uint8), width, 1)


@pytest.mark.parametrize("code", [-1, 8, 2**31])
def test_a_code_out_of_range_is_refused(code):
    with pytest.raises(ConfigError, match=r"0\.\.7"):
        pack(torch.tensor([0, code]), 3)


@pytest.mark.parametrize("nbytes", [0, 2, 4])
def test_a_stream_of_another_length_is_refused(nbytes):
    with pytest.raises(ConfigError, match="take 3 bytes"):
        unpack(torch.zeros(nbytes, dtype=torch.uint8), 5, 4)
