"""The suite `gpu` on the CPU as far as it goes: every section at a tiny size; kernels under Triton's interpreter.

Figures mean nothing here. The ordinary run starts this module once more under the interpreter, as `test_decode_triton`.
"""

import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from core_cases import UNET_CONFIG

from sdvq_core.bench import gpu_decode, gpu_encode, gpu_steps
from sdvq_core.bench.full_size import plan_for, random_codes, random_unet, skeleton, with_random_codes
from sdvq_core.bench.gpu import SECTIONS, require_cuda, run_sections
from sdvq_core.bench.gpu_clock import HOST
from sdvq_core.bench.gpu_setting import Setting, inputs
from sdvq_core.errors import ConfigError
from sdvq_core.grouping import from_groups, from_rows, row_length
from sdvq_core.nn import footprint, quantized_layers
from sdvq_core.quantizers import parse

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
TINY = Setting(
    CPU, HOST, UNET_CONFIG, cells=(8, 4), dtype=torch.float32, rounds=1, copy_nbytes=1 << 12, scratch_nbytes=1 << 12
)
interpreted = pytest.mark.skipif(not INTERPRETED, reason="needs Triton's interpreter")


def test_the_full_size_is_that_of_sdxl():
    unet = skeleton()
    assert sum(value.numel() for value in unet.parameters()) == 2_567_463_684
    shapes = [item.shape for item in plan_for(unet, parse("rvq:bits=3")).assignments]
    assert len(shapes) == 788
    assert sum(torch.Size(shape).numel() for shape in shapes) == 2_558_566_400


def test_random_weights_have_the_spread_of_their_inputs_and_every_tensor_its_own_seed():
    unet, again = (random_unet(CPU, torch.float32, UNET_CONFIG) for _ in range(2))
    tensors = dict(unet.named_parameters())
    assert all(torch.equal(value, tensors[name]) for name, value in again.named_parameters())
    weight = tensors["mid_block.resnets.0.conv1.weight"]
    assert float(weight.std()) == pytest.approx(weight[0].numel() ** -0.5, rel=0.1)
    assert not torch.equal(weight, tensors["mid_block.resnets.1.conv1.weight"])
    assert float(tensors["conv_norm_out.weight"].sum()) == len(tensors["conv_norm_out.weight"])
    assert float(tensors["conv_norm_out.bias"].abs().sum()) == 0
    with torch.no_grad():
        answer = unet(**inputs(TINY, 8, 2), return_dict=False)[0]
    assert torch.isfinite(answer).all()


@pytest.mark.parametrize("word", ["rvq:bits=3", "rtn:bits=4", "tcq:bits=3", "nf4"])
def test_random_codes_are_stored_as_the_quantizer_stores_them_and_decode_to_like_weights(word):
    original = random_unet(CPU, torch.float32, UNET_CONFIG)
    weights = {name: value.clone() for name, value in original.named_parameters()}
    unet = with_random_codes(original, parse(word))
    plan = plan_for(skeleton(UNET_CONFIG), parse(word))
    assert [name for name, _ in quantized_layers(unet)] == [item.name for item in plan.assignments]
    (books,) = {layer.stored["codebook"].data_ptr() for _, layer in quantized_layers(unet)} if word == "nf4" else (0,)
    for name, layer in quantized_layers(unet):
        spread = float(layer.weight.std() / weights[f"{name}.weight"].std())
        assert 0.3 < spread < 3, (books, name)


def test_a_section_that_fails_is_a_row_and_the_next_one_goes_on():
    def failing(setting):
        yield from fine(setting)
        raise RuntimeError("no such kernel\nand details")

    def fine(setting):
        assert not torch.is_grad_enabled()
        yield gpu_encode.Row("gpu", "fine", 1.0)

    found = []
    for row in run_sections({"first": failing, "second": fine}, TINY):
        assert torch.is_grad_enabled()
        found.append(row)
    assert [row.case for row in found] == ["fine", "first", "fine"]
    assert (found[1].seconds, found[1].note) == (None, "failed, RuntimeError: no such kernel")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_one_sentence_says_so():
    with pytest.raises(ConfigError, match="the suite gpu needs a CUDA device, and torch sees none"):
        require_cuda()


def test_steps_are_compared_with_float_weights_launched_and_captured():
    rows = list(gpu_steps.small_steps(TINY))
    assert [row.case.split(", ", 1)[1] for row in rows[:4]] == [
        "CUDA graph, bf16", "CUDA graph, bf16 channels last", "CUDA graph, rvq:bits=3 resident",
        "CUDA graph, rvq:bits=3 streaming",
    ]  # fmt: skip
    for four in (rows[:4], rows[4:8]):
        faster = min(four[:2], key=lambda row: row.seconds)
        name = faster.case.rpartition(", ")[2]
        assert four[3].note == f"{four[3].seconds / faster.seconds:.3f} of the time of {name}"
        assert (four[3].against, faster.note) == (faster.case, "")
    assert rows[8].note == "not measured: products in float8 need a CUDA GPU, the weights are on cpu"
    assert rows[9].note.startswith("decoded inside the product: none")


def test_float8_has_rows_of_its_own_where_the_device_has_it(monkeypatch):
    """Here the layers take the ordinary product all the same, and the error that is added is none."""
    monkeypatch.setattr(gpu_steps, "device_obstacle", lambda device: "")
    rows = list(gpu_steps.small_steps(TINY))
    assert [row.case for row in rows if row.case.endswith("float8 products") and row.seconds] == [
        f"step 32 px batch 1, {way}, rvq:bits=3 streaming, float8 products" for way in gpu_steps._WAYS
    ]
    (added,) = (row for row in rows if "added output error" in row.case)
    assert (added.rate, added.unit) == (0.0, "of the squared answer")


def test_float_weights_are_measured_in_both_orders_of_memory():
    models = gpu_steps._models(TINY)
    plain, last = models["bf16"], models["bf16 channels last"]
    assert plain.conv_in.weight.is_contiguous()
    for unet in (last, models["rvq:bits=3 resident"]):
        weight = unet.mid_block.resnets[0].conv1
        weight = weight.weight if unet is last else weight.decoded(torch.float32)
        assert weight.is_contiguous(memory_format=torch.channels_last)
    given = inputs(TINY, 8, 2)
    torch.testing.assert_close(*(gpu_steps._call(unet, given)() for unet in (plain, last)), rtol=1e-4, atol=1e-5)


def test_the_unets_answer_alike_and_large_steps_tell_memory():
    models = gpu_steps._models(TINY)
    given = inputs(TINY, 8, 2)
    *_, resident, streaming = (gpu_steps._call(unet, given)() for unet in models.values())
    torch.testing.assert_close(resident, streaming)
    rows = list(gpu_steps.large_steps(TINY))
    by_record = {row.case: row for row in rows if "by record" in row.case}
    kept = footprint(models["rvq:bits=3 streaming"])
    row = by_record["by record, weights + scratch, memory, rvq:bits=3 streaming"]
    assert row.rate == (kept.nbytes + kept.scratch_nbytes) / 1e6
    assert row.ratio == 2 * sum(v.numel() for v in models["bf16"].parameters()) / (kept.nbytes + kept.scratch_nbytes)


def test_quantizing_is_measured_or_extrapolated_and_says_which():
    (whole,) = gpu_encode.quantize_tcq(TINY)
    assert whole.case == f"quantize tcq:bits=3, data-free, all {len(PLANNED)} layers"
    assert "foretold" in whole.note
    (part,) = gpu_encode.quantize_tcq(replace(TINY, budget=0.0))
    shapes = len({item.shape for item in PLANNED})
    assert part.case == f"{whole.case}, extrapolated from one layer of each of {shapes} shapes"
    assert 0.2 < part.seconds / whole.seconds < 5


PLANNED = plan_for(skeleton(UNET_CONFIG), parse("tcq:bits=3")).assignments


@interpreted
@pytest.mark.parametrize("word", ["rvq:bits=3", "rvq:bits=2", "rtn:bits=4", "tcq:bits=3"])
def test_kernels_fill_the_scratch_with_the_weights(word):
    for number, (_, layer) in enumerate(random_codes(skeleton(UNET_CONFIG), parse(word), CPU)):
        if number % 6:
            continue
        (out,) = gpu_decode._scratch(TINY, [layer], reused=True)
        out.fill_(torch.nan)
        gpu_decode.rows_into(layer, out)
        if layer.format == "codebook":
            got = from_groups(out.reshape(len(out), -1, layer.meta["group_size"]), layer.shape)
        elif layer.format == "affine":
            got = from_rows(out[:, : row_length(layer.shape)], layer.shape)
        else:
            assert torch.isfinite(out).all()
            continue
        torch.testing.assert_close(got, layer.dequantize())


def test_scratch_is_reused_or_goes_around():
    layers = [layer for _, layer in random_codes(skeleton(UNET_CONFIG), parse("rvq:bits=3"), CPU)]
    one, many = (gpu_decode._scratch(TINY, layers, reused) for reused in (True, False))
    assert len({view.data_ptr() for view in one}) == 1
    assert [tuple(view.shape) for view in one] == [gpu_decode._rows_shape(layer) for layer in layers]
    assert len({view.data_ptr() for view in many}) > 3
    ahead = [(a.data_ptr() + a.nbytes, b.data_ptr()) for a, b in pairwise(many)]
    assert all(end <= start or start == many[0].data_ptr() for end, start in ahead)


@interpreted
@pytest.mark.parametrize("name", [name for name in SECTIONS if name.startswith("decode")])
def test_decoding_is_told_as_a_share_of_the_copy(name):
    rows = list(run_sections({name: SECTIONS[name]}, TINY))
    assert not [row for row in rows if row.note.startswith("failed")], rows
    if name == "decode, all layers":
        copy, first = rows[:2]
        assert copy.rate == pytest.approx(2 * TINY.copy_nbytes / copy.seconds / 1e9)
        assert first.note == f"{first.rate / copy.rate:.3f} of the copy's bandwidth"
        layers = gpu_decode._layers(TINY, "rvq:bits=3")
        moved = sum(array.nbytes for layer in layers for array in layer.tensors.values())
        moved += sum(4 * torch.Size(gpu_decode._rows_shape(layer)).numel() for layer in layers)
        assert first.rate == pytest.approx(moved / first.seconds / 1e9)
    elif "idiom" in name:
        assert rows[1].ratio == rows[0].seconds / rows[1].seconds


@interpreted
def test_the_idiom_gives_our_weights():
    layers = gpu_decode._layers(TINY, "rvq:bits=3")[:3]
    for layer in layers:
        assert torch.isfinite(layer.dequantize()).all()
    gpu_decode._idiom(TINY, layers)()


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this is what is started")
def test_under_the_interpreter():
    pytest.importorskip("triton", minversion="3.7")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rN", "-k", "kernels or decoding or idiom"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(Path(__file__))], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(".") >= 9, "sections, none of them skipped"
