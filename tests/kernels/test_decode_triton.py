"""Triton kernels against float64, on odd shapes, outputs poisoned first: compiled on a GPU, elsewhere interpreted.

Whether Triton compiles or interprets is fixed when it is imported. So the ordinary run starts this module once more in
a process of its own, under the interpreter; there the comparisons are no GPU tests. What only a compiler refuses is
found by compiling every kernel for a GPU, which needs none.
"""

import ctypes
import mmap
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from core_cases import NAMES, gaussian

from sdvq_core.bitpack import pack, packed_nbytes
from sdvq_core.formats.codebook import expand_scale
from sdvq_core.formats.trellis import circle_length, from_circles
from sdvq_core.grouping import from_groups, from_rows, groups_per_row, row_length
from sdvq_core.kernels import (
    beam_search_reference,
    gaussian_code,
    hadamard_block,
    rotate,
    scramble,
    trellis_decode,
    unrotate,
    viterbi_reference,
)
from sdvq_core.kernels.choice_file import ChoiceFile
from sdvq_core.kernels.choices import Choices, gpu_seconds
from sdvq_core.kernels.linear import MOST_ROWS
from sdvq_core.kernels.ways import WAYS
from sdvq_core.nn import QuantizedLinear, SharedCodebooks, set_mode
from sdvq_core.quantizers import parse

pytest.importorskip("triton")
import triton

from sdvq_core.kernels import search_triton, viterbi_triton
from sdvq_core.kernels.decode_triton import DTYPES, affine_rows, codebook_rows, trellis_rows, unsupported
from sdvq_core.kernels.hadamard_triton import MOST_BLOCK, rotated
from sdvq_core.kernels.linear_triton import codebook_linear
from sdvq_core.kernels.viterbi_triton import search as viterbi_search

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
VERSION = tuple(map(int, triton.__version__.split(".")[:2]))
linear_room = sys.modules["sdvq_core.kernels.linear"]  # the package offers the function under this name
ROOT = Path(__file__).resolve().parents[2]


def compared(test):
    """Decorator: runs on a GPU, or under the interpreter."""
    if INTERPRETED:
        return test
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")(test))


def compiled(test):
    """Decorator: runs where kernels are compiled."""
    return pytest.mark.skipif(INTERPRETED, reason="under the interpreter nothing is compiled")(test)


def poisoned(shape, dtype):
    return torch.full(shape, torch.nan, dtype=dtype, device=DEVICE)


def assert_rounded(got, exact):
    """`got` is `exact`, float64, but for one rounding to its dtype and those of float32 sums.

    The interpreter cuts off the digits that bfloat16 has not.
    """
    rounding = torch.finfo(got.dtype).eps / (1 if INTERPRETED and got.dtype == torch.bfloat16 else 2)
    torch.testing.assert_close(got.double().cpu(), exact, rtol=rounding + 3e-7, atol=3e-7)


def codebook_case(rows, groups, bits, size, books, run, seed=0):
    """Random codes, packed; codebooks; scales; and the weights in float64."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(2**bits, (books, rows * groups), generator=generator)
    codebooks = torch.randn(books, 2**bits, size, generator=generator).half()
    runs = -(-groups * size // run) if run else 1
    scale = torch.rand(rows, runs, generator=generator).half() + 0.5
    total = sum(book[code] for book, code in zip(codebooks.double(), codes, strict=True)).reshape(rows, -1)
    exact = total * expand_scale(scale.double(), groups * size, run)
    packed = torch.stack([pack(code, bits) for code in codes])
    return packed.to(DEVICE), codebooks.to(DEVICE), scale.to(DEVICE), exact


CODEBOOKS = [  # O, G, bits, d, M, scale_group
    (1, 1, 8, 8, 1, 0), (1, 1, 5, 4, 2, 0), (37, 5, 7, 4, 3, 0), (320, 40, 8, 8, 3, 0), (65, 33, 9, 8, 2, 0),
    (5, 13, 5, 8, 4, 0), (3, 7, 10, 4, 8, 0), (19, 9, 6, 8, 1, 0), (6, 11, 4, 4, 4, 0), (10, 24, 8, 8, 1, 64),
    (4, 10, 7, 8, 2, 64), (9, 11, 12, 2, 1, 0), (8, 50, 11, 4, 1, 0), (5, 9, 12, 1, 1, 0), (7, 130, 4, 1, 1, 64),
    (16, 256, 4, 1, 1, 64), (3, 50, 6, 1, 1, 0), (33, 27, 5, 1, 1, 27), (12, 64, 3, 1, 1, 32), (2, 72, 8, 1, 1, 0),
]  # fmt: skip


@compared
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CODEBOOKS, ids=str)
def test_codewords_are_summed_and_scaled(case, dtype):
    _, groups, bits, size, _, run = case
    packed, books, scale, exact = codebook_case(*case)
    out = poisoned(exact.shape, dtype)
    assert codebook_rows(packed, bits, books, scale, run, groups, dtype, out) is out
    assert_rounded(out, exact)
    assert groups * size == exact.shape[1]


@compared
@pytest.mark.parametrize("case", [(37, 5, 7, 4, 3, 0), (64, 8, 8, 8, 3, 0), (9, 16, 4, 1, 1, 0)], ids=str)
def test_codewords_in_float8_are_rounded_as_torch_rounds(case):
    packed, books, scale, _ = codebook_case(*case)
    if unsupported("codebook", packed.device, torch.float8_e4m3fn, case[2], 64):
        pytest.skip("no float8")
    arrays = (packed, case[2], books, scale, 0, case[1])
    found = codebook_rows(*arrays, torch.float8_e4m3fn).float()
    wanted = codebook_rows(*arrays, torch.float32).to(torch.float8_e4m3fn).float()
    if INTERPRETED:  # which loses the carry of what is rounded up to a power of two, and cuts subnormals off
        right = (wanted.frexp().mantissa.abs() != 0.5) & (wanted.abs() >= 2**-6)
        assert float(right.float().mean()) > 0.7
        found, wanted = found[right], wanted[right]
    assert torch.equal(found, wanted)


@compared
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "runs", "size", "bits"),
    [
        (1, 1, 1, 1), (37, 3, 27, 5), (64, 5, 64, 3), (130, 5, 64, 4), (5, 2, 16, 8), (9, 1, 7, 2), (3, 3, 128, 7),
        (11, 4, 36, 6), (2, 1, 8, 1), (257, 2, 32, 2),
    ],
)  # fmt: skip
def test_scalar_codes_are_scaled_and_moved(rows, runs, size, bits, dtype):
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(2**bits, (rows, runs, size), generator=generator)
    scale, offset = torch.rand(2, rows, runs, generator=generator).half() - torch.tensor([0, 2.0]).half()[:, None, None]
    exact = (codes * scale.double()[..., None] + offset.double()[..., None]).reshape(rows, -1)
    out = poisoned(exact.shape, dtype)
    arrays = pack(codes, bits).to(DEVICE), bits, scale.to(DEVICE), offset.to(DEVICE)
    assert affine_rows(*arrays, size, dtype, out) is out
    assert_rounded(out, exact)


@compared
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "columns", "bits", "state_bits"),
    [
        (1, 1, 2, 2), (37, 5, 3, 8), (320, 40, 3, 12), (256, 3, 1, 16), (5, 5, 4, 12), (7, 9, 2, 14), (130, 33, 4, 16),
        (64, 64, 1, 8), (1, 300, 3, 16), (384, 65, 2, 10), (1, 5, 3, 15),
    ],
)  # fmt: skip
def test_states_are_read_around_their_circles(rows, columns, bits, state_bits, dtype):
    places = circle_length(rows, columns)
    codes = torch.randint(2**bits, (rows * columns // places, places), generator=torch.Generator().manual_seed(2))
    table = gaussian_code(bits, state_bits)
    exact = from_circles(trellis_decode(codes, bits, table), rows).double()
    out = poisoned(exact.shape, dtype)
    assert trellis_rows(pack(codes, bits).to(DEVICE), bits, table.to(DEVICE), places, exact.shape, dtype, out) is out
    assert_rounded(out, exact)


# The interpreter multiplies bfloat16's bit patterns: github.com/triton-lang/triton/issues/11584.
@compared
@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if not INTERPRETED or dtype != torch.bfloat16], ids=str)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("count", "case"),
    [
        (1, (1, 1, 8, 8, 1, 0)), (5, (37, 5, 7, 4, 3, 0)), (77, (130, 20, 8, 8, 3, 0)), (130, (70, 19, 9, 8, 2, 0)),
        (16, (64, 16, 5, 4, 4, 0)), (3, (5, 70, 4, 1, 1, 0)), (2, (9, 11, 12, 2, 1, 0)),
    ],
)  # fmt: skip
def test_the_product_decodes_as_it_goes(count, case, biased, dtype):
    packed, books, scale, exact = codebook_case(*case)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, exact.shape[1], generator=generator).to(dtype)
    bias = torch.randn(len(exact), generator=generator).to(dtype) if biased else None
    want = x.double() @ exact.T + (bias.double() if biased else 0)
    got = codebook_linear(x.to(DEVICE), packed, case[2], books, scale, case[1], bias.to(DEVICE) if biased else None)
    assert got.dtype == dtype
    tolerance = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    assert float((got.double().cpu() - want).norm() / want.norm()) < tolerance


def decoded(tensor, dtype=torch.float32):
    """The weight of a QuantizedTensor by the kernels."""
    arrays = {name: array.to(DEVICE) for name, array in tensor.tensors.items()}
    shape, meta, codes, scale = tensor.shape, tensor.meta, arrays["codes"], arrays["scale"]
    if tensor.format == "codebook":
        size = meta["group_size"]
        groups = groups_per_row(shape, size)
        rows = codebook_rows(codes, meta["code_bits"], arrays["codebook"], scale, meta["scale_group"], groups, dtype)
        return from_groups(rows.reshape(shape[0], groups, size), shape).cpu()
    size = shape[0], row_length(shape)
    if tensor.format == "affine":
        rows = affine_rows(codes, meta["bits"], scale, arrays["offset"], meta["group_size"], dtype)
        return from_rows(rows[:, : size[1]], shape).cpu()
    table = gaussian_code(meta["bits"], meta["state_bits"]).to(DEVICE)
    rows = trellis_rows(codes, meta["bits"], table, circle_length(*size), size)
    return from_rows(unrotate(rows, meta["seed"]) * scale.float() + arrays["offset"].float(), shape).cpu()


ROTATIONS = [(3, 1), (5, 3), (7, 2), (1, 24), (9, 40), (130, 64), (3, 512), (2, 1280), (33, 2048), (1, 8192)]


@compared
@pytest.mark.parametrize("seed", [0, 5, 4095])
@pytest.mark.parametrize("shape", ROTATIONS, ids=str)
def test_the_rotation_is_that_of_the_reference(shape, seed, monkeypatch):
    rows = gaussian(shape, 6, 1.0)
    wanted = rotate(rows, seed), unrotate(rows, seed)
    block = hadamard_block(shape[1])
    exact = rotate(rows.double(), seed)
    if block <= 64:
        signed = rows.double() * (1 - 2 * (scramble(torch.arange(shape[1]) + (seed << 20)) >> 31))
        by_definition = (signed.reshape(-1, block) @ hadamard_matrix(block) / block**0.5).reshape(shape)
        torch.testing.assert_close(exact, by_definition)
    found = [rotated(rows.T.contiguous().T.to(DEVICE), block, seed, first).cpu() for first in (True, False)]
    torch.testing.assert_close(found[0].double(), exact, rtol=1e-6, atol=1e-6)
    assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))
    interpreted_on_the_cpu(monkeypatch)
    assert torch.equal(unrotate(rows.to(DEVICE), seed).cpu(), wanted[1])


def hadamard_matrix(size):
    """[size, size] of +1 and -1, by its definition: the parity of the bits that row and column share."""
    shared = torch.arange(size)[:, None] & torch.arange(size)
    parity = sum((shared >> bit) & 1 for bit in range(size.bit_length())) % 2
    return 1 - 2 * parity.double()


@compared
@pytest.mark.parametrize("name", NAMES)
def test_what_every_quantizer_stores_is_decoded_to_the_same(name):
    quantized = parse(name).quantize(gaussian((5, 9, 3, 3)))
    torch.testing.assert_close(decoded(quantized), quantized.dequantize(), rtol=1e-6, atol=1e-8)


@pytest.mark.skipif(not INTERPRETED, reason="a GPU's memory has no such pages")
@pytest.mark.parametrize("bits", [3, 7, 8, 9])
def test_nothing_behind_the_codes_is_read(bits):
    """The codes end where the readable memory does: a byte more would end this process."""
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 2 * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + page), page, 0) == 0
    packed, books, scale, exact = codebook_case(3, 31, bits, 4, 1, 0)
    last = torch.frombuffer(memory, dtype=torch.uint8, count=page)[page - packed.numel() :]
    last.copy_(packed[0])
    assert_rounded(codebook_rows(last[None], bits, books, scale, 0, 31, torch.float32), exact)
    codebook_linear(torch.ones(2, 31 * 4), last[None], bits, books, scale, 31)
    if bits <= 8:
        affine_rows(last, bits, scale, scale, 31, torch.float32)
    if bits <= 4:
        trellis_rows(last, bits, gaussian_code(bits, 12), 93, (3, 31))


@compared
@pytest.mark.parametrize(
    ("shape", "bits", "state_bits"),
    [((2, 130), 3, 6), ((2, 12), 1, 4), ((1, 3), 3, 9), ((2, 5), 4, 4)],
)
def test_the_viterbi_kernel_finds_the_codes_of_the_reference(shape, bits, state_bits):
    target, mass = gaussian(shape, 1, 1.0), gaussian(shape, 2, 1.0).abs()
    mass[0] = 0
    table = gaussian_code(bits, state_bits)
    found = viterbi_search(target.to(DEVICE), mass.to(DEVICE), table.to(DEVICE), bits, 64)
    assert torch.equal(found.cpu(), viterbi_reference(target, mass, table, bits))


@compared
def test_programs_go_from_circle_to_circle(monkeypatch):
    """With room for one program only."""
    monkeypatch.setattr(viterbi_triton, "_ROOM_NBYTES", 1)
    target, table = gaussian((4, 9), 3, 1.0), gaussian_code(2, 6)
    ones = torch.ones_like(target)
    turned = target.T.contiguous().T.to(DEVICE)
    found = viterbi_search(turned, ones.to(DEVICE), table.to(DEVICE), 2, 64)
    assert torch.equal(found.cpu(), viterbi_reference(target, ones, table, 2))
    assert viterbi_search(turned[:0], turned[:0], table.to(DEVICE), 2, 64).shape == (0, 9)


@compared
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "case",
    [(20, 3, 16, 8, 8), (17, 1, 32, 4, 8), (5, 2, 64, 3, 5), (9, 3, 4, 2, 8), (9, 2, 11, 4, 16), (3, 2, 1, 2, 2)],
    ids=str,
)  # fmt: skip
def test_the_search_kernel_finds_the_codes_of_the_reference(case, weighted):
    count, books, entries, size, beam = case
    points, codebooks = gaussian((count, size), 1, 1.0), gaussian((books, entries, size), 2, 0.5)
    weights = gaussian((count, size), 3, 1.0).abs() + 0.1 if weighted else None
    mass = weights.to(DEVICE) if weighted else None
    found = search_triton.beam_search(points.to(DEVICE), codebooks.to(DEVICE), beam, mass)
    assert found.shape == (books, count)
    assert torch.equal(found.cpu(), beam_search_reference(points, codebooks, weights, beam))


@compared
@pytest.mark.parametrize(
    "word", ["rvq:codebooks=2,code_bits=4,share=layer", "aq:codebooks=2,code_bits=4,rounds=1", "tcq"]
)
def test_quantizing_by_kernels_finds_as_good_codes(word, monkeypatch):
    weight = gaussian((8, 16))
    wanted = parse(word).quantize(weight)
    interpreted_on_the_cpu(monkeypatch)
    found = parse(word).quantize(weight.to(DEVICE))
    assert {array.device.type for array in found.tensors.values()} == {DEVICE}
    error, least = (float((it.dequantize().cpu() - weight).square().sum()) for it in (found, wanted))
    assert error == pytest.approx(least, rel=0.02, abs=0.01 * float(weight.square().sum()))


def test_what_a_search_cannot_hold_in_registers_is_left_to_torch():
    said = search_triton.obstacle
    assert said(torch.zeros(3, 256, 8), 8) == said(torch.zeros(1, 4096, 4), 8) == said(torch.zeros(3, 100, 8), 1) == ""
    assert said(torch.zeros(3, 1024, 8), 8) == (
        "1024 entries for each of 8 hypotheses, where a search holds 4096 scores"
    )
    assert said(torch.zeros(8, 256, 8), 1) == "8 codes of 8 bits, where a path has 62"
    assert said(torch.zeros(1, 16, 64), 1) == "entries of 64 weights, where a search takes 32"


SLOW_AND_FAST = {"inside": lambda ways: (1.0, 2.0), "apart": lambda ways: (2.0, 1.0)}


@compared
@pytest.mark.parametrize("choice", SLOW_AND_FAST)
@pytest.mark.parametrize("word", ["rvq:bits=3,share=layer", "aq:bits=2,share=layer,rounds=0"])
def test_a_layer_multiplies_in_the_way_that_was_faster(word, choice, monkeypatch):
    layer, choices = streaming(word, choice, monkeypatch)
    for shape in ((5, 32), (2, 8, 32)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(4)).to(DEVICE)
        exact = x.double() @ layer.quantized.dequantize().double().T + layer.bias.double()
        got = layer(x)
        assert got.shape == exact.shape
        assert float((got.double() - exact).norm() / exact.norm()) < 1e-6
    assert list(choices.known().values()) == [choice == "inside"] * 2


@compared
def test_what_the_fused_kernel_cannot_do_is_decoded_and_not_timed(monkeypatch):
    layer, choices = streaming("rvq:bits=3,share=layer", "inside", monkeypatch)
    x = torch.ones(4, 32, device=DEVICE)
    layer(torch.ones(MOST_ROWS + 1, 32, device=DEVICE))
    layer(x.requires_grad_()).sum().backward()
    assert x.grad is not None
    with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16):
        layer(x)
    streaming("nf4:block_size=32", "inside", monkeypatch, choices)[0](torch.ones(4, 32, device=DEVICE))
    streaming("tcq:bits=3", "inside", monkeypatch, choices)[0](torch.ones(4, 32, device=DEVICE))
    assert choices.known() == {}
    with torch.no_grad():
        layer(x)
    assert list(choices.known().values()) == [True]


def streaming(word, choice, monkeypatch, choices=None):
    """A layer [24, 32] that decodes in every forward, and the choices that it is bound to."""
    choices = choices or new_choices(SLOW_AND_FAST[choice])
    monkeypatch.setattr(linear_room, "CHOICES", choices)
    monkeypatch.setitem(WAYS, "cpu", "numba")
    quantized = parse(word).quantize(gaussian((24, 32)))
    interpreted_on_the_cpu(monkeypatch)
    original = torch.nn.Linear(32, 24).requires_grad_(False)
    layer = QuantizedLinear(original, quantized.format, quantized.meta, SharedCodebooks())
    layer.fill({name: array.to(DEVICE) for name, array in quantized.tensors.items()})
    set_mode(layer, "streaming")
    return layer.to(DEVICE), choices


def new_choices(seconds):
    """Choices that are kept in a folder of their own."""
    folder = Path(tempfile.mkdtemp())
    return Choices(seconds, ChoiceFile(lambda: folder))


def interpreted_on_the_cpu(monkeypatch):
    """Under the interpreter tensors on the CPU go where those on a GPU go."""
    if INTERPRETED:
        monkeypatch.setitem(WAYS, "cpu", "triton")


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="no CUDA device")
def test_ways_are_timed_on_the_gpu_and_never_while_a_graph_is_captured(monkeypatch):
    layer, _ = streaming("rvq:bits=3,share=layer", "inside", monkeypatch)
    choices = new_choices(gpu_seconds)
    monkeypatch.setattr(linear_room, "CHOICES", choices)
    x, other = torch.ones(4, 32, device=DEVICE), torch.ones(8, 32, device=DEVICE)
    with torch.no_grad():
        wanted, beyond = layer(x), layer(other)
        known = choices.known()
        assert len(known) == 2
        forgotten = new_choices(gpu_seconds)
        forgotten._fused = {case: fused for case, fused in known.items() if case.rows == 4}
        monkeypatch.setattr(linear_room, "CHOICES", forgotten)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got, more = layer(x), layer(other)
    graph.replay()
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(more, beyond, rtol=1e-4, atol=1e-4)
    assert len(forgotten.known()) == 1


def test_what_is_not_supported_is_said_in_words():
    cpu = torch.device("cpu")
    assert unsupported("codebook", cpu, torch.float64, 8, 64).startswith("torch.float64 is none of torch.float32")
    assert unsupported("affine", cpu, torch.float8_e4m3fn, 4, 64).startswith("torch.float8_e4m3fn is none of")
    assert unsupported("affine", cpu, torch.float16, 9, 64) == "codes of 9 bits, where affine takes 1 to 8"
    assert unsupported("trellis", cpu, torch.float16, 5, 64) == "codes of 5 bits, where trellis takes 1 to 4"
    assert unsupported("linear", cpu, torch.float16, 8, 2**30).startswith("1073741824 weights, where")
    assert unsupported("codebook", torch.device("meta"), torch.float16, 8, 64) == (
        "the weights are on meta, Triton needs cuda"
    )
    reason = None if INTERPRETED else "the weights are on cpu, Triton needs cuda"
    assert unsupported("codebook", cpu, torch.float16, 8, 64) == reason


@compiled
@pytest.mark.skipif(VERSION < (3, 7), reason="its interpreter fails with new versions of numpy")
def test_the_interpreter_agrees():
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rN", str(Path(__file__))]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(".") > 100, "comparisons, none of them skipped"


def ahead_of_time(capability, found):
    """What a launch does instead: compiles for a GPU of `capability`, runs nothing, and appends the result to `found`.

    Like Triton's launch it takes pointers and multiples of 16 for aligned, and the number 1 for a constant.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    def run(self, *given, grid, warmup, **options):
        values = dict(zip(self.arg_names, given, strict=False))
        values |= {name: options.pop(name) for name in self.arg_names if name in options}
        signature, constants, aligned = {}, {}, {}
        for place, (param, value) in enumerate((param, values[param.name]) for param in self.params):
            tensor = isinstance(value, torch.Tensor)
            if param.is_constexpr or value is None or (not tensor and value == 1):
                signature[param.name], constants[place,] = "constexpr", value
            else:
                signature[param.name] = POINTERS[value.dtype] if tensor else "i32"
                if tensor or value % 16 == 0:
                    aligned[place,] = [["tt.divisibility", 16]]
        source = ASTSource(self, signature, constants, aligned)
        found.append(triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options))

    return run


POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.uint8: "*u8",
    torch.int64: "*i64",
}


def launch(kind, bits, size, books, dtype):
    """Launch a kernel for a 1280 x 1280 layer of zeros."""
    codes = torch.zeros(books, packed_nbytes(1280 * 1280 // size, bits), dtype=torch.uint8)
    codebooks, scale = torch.zeros(books, 2**bits, size).half(), torch.zeros(1280, 1).half()
    if kind == "codebook":
        codebook_rows(codes, bits, codebooks, scale, 0, 1280 // size, dtype)
    elif kind == "affine":
        affine_rows(codes[0], bits, scale, scale, 1280, dtype)
    elif kind == "trellis":
        trellis_rows(codes[0], bits, torch.zeros(2**12), 128, (1280, 1280), dtype)
    else:
        codebook_linear(torch.zeros(256, 1280, dtype=dtype), codes, bits, codebooks, scale, 1280 // size, scale[:, 0])


@compiled
@pytest.mark.parametrize(
    ("capability", "case"),
    [
        (90, ("codebook", 8, 8, 3, torch.bfloat16)), (90, ("codebook", 7, 8, 4, torch.float32)),
        (90, ("codebook", 4, 1, 1, torch.float16)), (90, ("affine", 3, 1, 1, torch.bfloat16)),
        (90, ("trellis", 3, 1, 1, torch.float32)), (90, ("linear", 8, 8, 3, torch.bfloat16)),
        (89, ("linear", 8, 8, 8, torch.float32)),
    ],
    ids=str,
)  # fmt: skip
def test_kernels_compile_to_wide_stores_within_a_gpus_shared_memory(capability, case, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = []
    monkeypatch.setattr(triton.runtime.JITFunction, "run", ahead_of_time(capability, found))
    launch(*case)
    assert len(found) == 1, "one launch per layer"
    assert "st.global.v4.b32" in found[0].asm["ptx"], "16 bytes at once"
    assert found[0].metadata.shared <= 99 << 10, "what compute capabilities 8.6 and 8.9 have"


@compiled
@pytest.mark.parametrize("capability", [89, 90])
def test_decoding_to_float8_compiles(capability, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = []
    monkeypatch.setattr(triton.runtime.JITFunction, "run", ahead_of_time(capability, found))
    launch("codebook", 8, 8, 3, torch.float8_e4m3fn)
    assert "e4m3x2.f32" in found[0].asm["ptx"], "the GPU's own rounding"
    assert "st.global.v" in found[0].asm["ptx"]


@compiled
def test_kernels_compile_for_a_layer_of_one_weight(monkeypatch, tmp_path):
    """Every number is 1 and so a constant."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = []
    monkeypatch.setattr(triton.runtime.JITFunction, "run", ahead_of_time(90, found))
    codes, one = torch.zeros(1, 1, dtype=torch.uint8), torch.ones(1, 1).half()
    codebook_rows(codes, 8, torch.zeros(1, 256, 2).half(), one, 0, 1, torch.float16)
    codebook_rows(codes, 4, torch.zeros(1, 16, 1).half(), one, 0, 1, torch.float16)
    affine_rows(codes[0], 3, one, one, 1, torch.float16)
    trellis_rows(codes[0], 3, torch.zeros(8), 1, (1, 1), torch.float16)
    codebook_linear(torch.zeros(1, 2).half(), codes, 8, torch.zeros(1, 256, 2).half(), one, 1)
    assert len(found) == 5


@compiled
@pytest.mark.parametrize(("bits", "state_bits"), [(3, 12), (1, 16), (4, 10), (2, 4)])
def test_the_viterbi_kernel_compiles(bits, state_bits, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = []
    monkeypatch.setattr(triton.runtime.JITFunction, "run", ahead_of_time(80, found))
    viterbi_search(torch.zeros(8, 128), torch.ones(8, 128), gaussian_code(bits, state_bits), bits, 64)
    assert found[0].metadata.shared <= 48 << 10
    assert "bar.sync" in found[0].asm["ptx"], "a step reads what the last one wrote"
    assert "fma.rn.f32" not in found[0].asm["ptx"], "multiply, then add: the reference's rounding"


@compiled
@pytest.mark.parametrize("block", [1, 2, 64, 128, 256, 2048, MOST_BLOCK])
@pytest.mark.parametrize("first", [True, False])
def test_the_rotation_compiles(block, first, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = []
    monkeypatch.setattr(triton.runtime.JITFunction, "run", ahead_of_time(80, found))
    rotated(torch.zeros(64, 3 * block), block, 7, first)
    assert found[0].metadata.shared <= 48 << 10
    assert "div.rn.f32" in found[0].asm["ptx"], "rounded as the reference rounds"
    assert "fma.rn.f32" not in found[0].asm["ptx"]


@compiled
@pytest.mark.parametrize("case", [(3, 256, 8, 8), (1, 256, 8, 1), (4, 512, 4, 8), (1, 16, 1, 1)], ids=str)
def test_the_search_kernel_compiles(case, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    books, entries, size, beam = case
    found = []
    monkeypatch.setattr(triton.runtime.JITFunction, "run", ahead_of_time(80, found))
    search_triton.beam_search(torch.zeros(64, size), torch.zeros(books, entries, size), beam)
    assert found[0].metadata.shared <= 48 << 10
