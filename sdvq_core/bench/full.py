"""Suite `full`: SDXL's UNet at full size with random weights, on the CPU, by the path that a user's checkpoint takes.

A real pipeline folder on the disk, `compress` in a process of its own, the artifact loaded and called. Peaks are the
most that a process ever held (VmHWM), above one that has imported torch. Minutes, 12 GB of disk, 14 GB of memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdvq_core.bench.checkpoints import RandomModel, write_random_folder
from sdvq_core.bench.full_size import call_inputs
from sdvq_core.bench.timing import Row, in_turns, rows
from sdvq_core.integrations.loading import load_artifact
from sdvq_core.nn import footprint, quantized_layers
from sdvq_core.store.artifact import WEIGHTS_NAME
from sdvq_core.store.checked import forget

SUITE = "full"
_WORDS = ("rtn:bits=4", "rvq:bits=3")
_ROUNDS, _CELLS = 5, 64
_LOADING = """
import gc, pathlib, sys, torch
from sdvq_core.integrations.loading import load_artifact
def held():
    gc.collect()
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
before = held()
unet = load_artifact(sys.argv[1], "cpu", torch.float32, "streaming")
print((held() - before) << 10)
"""
_MEASURED = """
import pathlib, sys
place = pathlib.Path(sys.argv.pop(1))
try:
    {work}
finally:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    place.write_text(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
"""


def full(model: RandomModel | None = None) -> Iterator[Row]:
    """Compressing, loading, memory and one call; `model` may be a smaller one."""
    model = model or RandomModel(text_layers=1)
    with tempfile.TemporaryDirectory(prefix="sdvq-full-") as name:
        root = Path(name)
        for _ in write_random_folder(root / "model", model):
            pass
        for word in _WORDS:
            yield from _compressed(root, word)
        artifact = root / _WORDS[-1]
        yield from _loaded(root / "model" / "unet", artifact)
        yield from _called(artifact, model)


def _compressed(root: Path, word: str) -> Iterator[Row]:
    """Seconds, peak memory and size of one arm by the command line, two layers at a time."""
    command = ["compress", str(root / "model"), word, "--out", str(root / word), "--device", "cpu", "--json"]
    line = "from sdvq_core.cli import main; main()"
    said, peak = _measured(line, command, root)
    _, bare = _measured("import torch", [], root)
    report = json.loads(said)
    ledger, layers = report["ledger"], len(report["layers"])
    kept = len(report["kept"]) + len(ledger["fallbacks"])
    threads = torch.get_num_threads()
    case = f"compress {word}, data-free, {threads} threads"
    rate = ledger["weights_quantized"] / 1e6 / report["seconds"]
    seen = f"{layers + kept} layers seen, {kept} kept in 16 bits"
    yield Row(SUITE, case, report["seconds"], rate=rate, unit="10^6 weights/s", note=seen)
    size = f"{ledger['bits_per_weight']:.3f} bits per weight, file of {ledger['file_bytes']} bytes"
    yield Row(SUITE, f"peak memory of {case}, above torch", rate=(peak - bare) / 1e6, unit="MB", note=size)


def _measured(line: str, arguments: list[str], root: Path) -> tuple[str, int]:
    """What a process of its own printed, and the most bytes that it ever held."""
    place, code = root / "peak", _MEASURED.format(work=line)
    environment = {**os.environ, "SDVQ_DATA": str(root / "data")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(place), *arguments], stdout=subprocess.PIPE, text=True, env=environment
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with exit code {done.returncode}")
    return done.stdout, int(place.read_text()) << 10


def _loaded(original: Path, artifact: Path) -> Iterator[Row]:
    """From files in the page cache to a UNet in float16: mapped only, read to the last byte, copied, and ours.

    Copied: into memory of its own, where ours is too. Ours twice: its content compared with its SHA-256, and
    remembered to be what it was then (`store.checked`).
    """
    from diffusers import UNet2DConditionModel

    def mapped() -> nn.Module:
        unet: nn.Module = UNet2DConditionModel.from_pretrained(original, dtype=torch.float16)
        return unet

    def read() -> nn.Module:
        unet = mapped()
        for value in unet.parameters():
            value.detach().view(torch.uint8).flatten()[::4096].sum()  # a byte of every page
        return unet

    def copied() -> nn.Module:
        unet = mapped()
        for value in unet.parameters():
            value.data = value.data.clone()
        return unet

    def ours() -> nn.Module:
        unet: nn.Module = load_artifact(artifact, "cpu", torch.float16, "streaming")
        return unet

    def compared() -> nn.Module:
        forget(artifact / WEIGHTS_NAME)
        return ours()  # compares, and remembers, for the next case

    fp16, load = "load fp16, every page read", f"load {artifact.name}, streaming"
    cases = {
        fp16: read,
        "load fp16, mapped only": mapped,
        "load fp16, copied into memory of its own": copied,
        f"{load}, for the first time": compared,
        f"{load}, content known": ours,
    }
    yield from rows(SUITE, in_turns(cases, _ROUNDS), fp16)


def _called(artifact: Path, model: RandomModel) -> Iterator[Row]:
    """Memory and one call at 512 pixels; the same weights as floats are the other side."""
    unet = load_artifact(artifact, "cpu", torch.float32, "streaming")
    alone = subprocess.run([sys.executable, "-c", _LOADING, str(artifact)], capture_output=True, text=True, check=True)
    sizes = {"by record": footprint(unet).nbytes, "measured in a process of its own": int(alone.stdout)}
    floats = decoded(unet)
    whole = 2 * sum(value.numel() for value in floats.parameters())
    for case, nbytes in sizes.items():
        note = f"{nbytes} bytes, {nbytes / whole:.4f} of 16 bits for every parameter"
        name = f"memory of {artifact.name}, streaming, {case}"
        yield Row(SUITE, name, rate=nbytes / 1e6, unit="MB", ratio=whole / max(1, nbytes), against="16 bits", note=note)
    given = call_inputs(model.config("unet"), _CELLS, 1, torch.device("cpu"), torch.float32)
    answers: dict[str, torch.Tensor] = {}
    cases = {name: _caller(one, given, answers, name) for name, one in (("dequantized", floats), ("streaming", unet))}
    found = rows(SUITE, in_turns(cases, 1), "dequantized")
    off = float((answers["streaming"] - answers["dequantized"]).abs().max() / answers["dequantized"].abs().max())
    size = f"{8 * _CELLS} pixels, float32"
    for row in found:
        note = f"largest difference {off:.1e} of the largest output"
        yield replace(row, case=f"UNet call, {size}, {row.case}", note=note)


def _caller(unet: nn.Module, given: Mapping[str, Any], answers: dict[str, torch.Tensor], name: str) -> Any:
    @torch.no_grad()
    def call() -> None:
        answers[name] = unet(**given, return_dict=False)[0]

    return call


def decoded(unet: nn.Module) -> nn.Module:
    """A float UNet with the weights that the compressed `unet` decodes to."""
    from diffusers import UNet2DConditionModel

    config = dict(unet.config.items())  # type: ignore[union-attr,operator]
    config.pop("quantization_config", None)
    with torch.device("meta"):
        plain: nn.Module = UNet2DConditionModel.from_config(config)
    weights = {f"{name}.weight": layer.quantized.dequantize() for name, layer in quantized_layers(unet)}
    kept = unet.state_dict()
    state = {name: weights[name] if name in weights else kept[name] for name in plain.state_dict()}
    plain.load_state_dict(state, assign=True)
    return plain.eval().requires_grad_(False)
