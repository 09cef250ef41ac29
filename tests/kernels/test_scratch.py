"""What decoding takes for a moment, as it is recorded, against what torch allocated at the most."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from core_cases import gaussian

from sdvq_core.kernels import ways
from sdvq_core.qtensor import QuantizedTensor, get_format
from sdvq_core.quantizers import parse

CPU = torch.device("cpu")
SHAPES = {"linear": (512, 1024), "convolution": (256, 128, 3, 3), "padded": (256, 131, 3, 3)}
WORDS = ["rvq:bits=3,beam=1", "rvq:codebooks=3,code_bits=7,share=layer,beam=1", "nf4", "rtn:bits=4", "tcq:bits=1"]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def peak(run: Callable[[], object], folder: Path) -> int:
    """Bytes that torch had allocated at the most while `run` ran, beside those from before."""
    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = run()
    profile.export_chrome_trace(str(folder / "trace.json"))
    assert kept is not None
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    events.sort(key=lambda event: event.get("ts", 0))
    facts = [event["args"] for event in events if event["name"] == "[memory]"]
    return max(fact["Total Allocated"] for fact in facts) - (facts[0]["Total Allocated"] - facts[0]["Bytes"])


def decoded(word: str, shape: tuple[int, ...]) -> QuantizedTensor:
    """Random codes as a quantizer stores them."""
    meta, form = parse(word).layout(shape), parse(word).format
    tensors = {}
    for name, spec in get_format(form).spec(shape, meta).items():
        random = gaussian(spec.shape, 1, 1.0)
        tensors[name] = (random.abs() * 255).clamp(0, 255).byte() if spec.part == "codes" else random.half()
    return QuantizedTensor(form, shape, tensors, meta)


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "torch"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("word", WORDS)
def test_the_record_is_what_decoding_allocates(word, shape, compiled, monkeypatch, tmp_path):
    tensor = decoded(word, SHAPES[shape])
    if not compiled:
        monkeypatch.setattr(ways, "missing", lambda name: "not wanted here")
        monkeypatch.setattr(ways, "warn_slow", lambda reason: None)
    for dtype in DTYPES:
        record = get_format(tensor.format).decoding_nbytes(tensor.shape, tensor.meta, dtype, CPU)
        measured = peak(lambda dtype=dtype: tensor.dequantize(dtype), tmp_path)
        weight = torch.Size(tensor.shape).numel() * dtype.itemsize
        assert weight <= measured
        assert 0.98 < record / measured < 1.1, (dtype, record, measured)


def test_on_a_gpu_codewords_need_no_room_but_the_rows():
    form, meta = get_format("codebook"), parse("rvq:bits=3").layout((512, 1024))
    gpu = torch.device("cuda")
    if ways.missing("triton"):
        pytest.skip("no Triton")
    assert form.decoding_nbytes((512, 1024), meta, torch.bfloat16, gpu) == 2 * 512 * 1024
    form, meta = get_format("trellis"), parse("tcq:bits=3").layout((512, 1024))
    rotated = form.decoding_nbytes((512, 1024), meta, torch.half, gpu)
    assert rotated >= 8 * 512 * 1024, "float32 before and after it is rotated back"
