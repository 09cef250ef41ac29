"""A UNet is resident where its decoded weights fit, streaming elsewhere; its footprint is what its tensors take."""

from __future__ import annotations

import itertools
import logging
from math import prod
from pathlib import Path

import pytest
import torch
from core_cases import quantizer, run_unet, tiny_artifact
from torch import nn

from sdvq_core.errors import ConfigError
from sdvq_core.integrations.loading import build_unet, load_artifact
from sdvq_core.nn import QuantizedLayer, footprint, make_ready, mode_of, modes, quantized_layers
from sdvq_core.plan import vqdm_rules
from sdvq_core.store import Artifact, read_report, write_artifact

ERRORS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ..."),
    "python": MemoryError(),
    "cpu": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
}


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return tiny_artifact(vqdm_rules(quantizer("rvq", codebooks=2, code_bits=4, beam=2)))[0]


@pytest.fixture
def unet(artifact: Artifact) -> nn.Module:
    return build_unet(artifact)


@pytest.fixture(scope="module")
def folder(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "a"
    write_artifact(path, artifact)
    return path


def decoded_nbytes(unet: nn.Module, width: int = 4) -> int:
    return sum(prod(layer.shape) * width for _, layer in quantized_layers(unet))


def in_memory(unet: nn.Module) -> int:
    return sum(layer._decoded is not None for _, layer in quantized_layers(unet))


def fail(monkeypatch: pytest.MonkeyPatch, error: Exception, after: int = 3) -> None:
    """Decoding fails once, after some layers."""
    turns, decode = itertools.count(), QuantizedLayer._decode

    def decoded(layer: QuantizedLayer, dtype: torch.dtype) -> torch.Tensor:
        if next(turns) == after:
            raise error
        return decode(layer, dtype)

    monkeypatch.setattr(QuantizedLayer, "_decode", decoded)


@pytest.mark.parametrize(("room", "mode"), [(0, "resident"), (-2, "streaming")])
def test_auto_is_resident_where_the_decoded_weights_take_half_of_what_is_free(unet, monkeypatch, room, mode):
    free = int(decoded_nbytes(unet) / (1 - modes.RESERVE)) + room
    monkeypatch.setattr(modes, "free_nbytes", lambda device: free)
    assert make_ready(unet, "auto", torch.float32) is None
    assert mode_of(unet) == footprint(unet).mode == mode


def test_half_precision_needs_half_the_room(unet, monkeypatch):
    monkeypatch.setattr(modes, "free_nbytes", lambda device: int(decoded_nbytes(unet, 2) / (1 - modes.RESERVE)))
    make_ready(unet, "auto", torch.float32)
    assert mode_of(unet) == "streaming"
    make_ready(unet.half(), "auto", torch.float16)
    assert mode_of(unet) == "resident"
    assert footprint(unet).decoded_nbytes == decoded_nbytes(unet, 2)


def test_the_footprint_counts_every_tensor(unet):
    stored = sum(value.nbytes for value in unet.state_dict().values())
    make_ready(unet, "streaming", torch.float32)
    streaming = footprint(unet)
    assert (streaming.nbytes, streaming.decoded_nbytes, streaming.decoding) == (stored, 0, "decoded in every step")
    largest = max(prod(layer.shape) * 4 for _, layer in quantized_layers(unet))
    assert largest < streaming.scratch_nbytes < 2.2 * largest, "scales in float32, codes with room, padded rows"
    run_unet(unet)
    assert footprint(unet) == streaming, "nothing stays after a step"
    make_ready(unet, "resident", torch.float32)
    resident = footprint(unet)
    assert resident.nbytes == stored + decoded_nbytes(unet), "codes stay beside what they decode to"
    assert (resident.decoded_nbytes, resident.scratch_nbytes) == (decoded_nbytes(unet), 0)
    assert resident.decoding == "decoded once"
    run_unet(unet)
    assert footprint(unet) == resident, "all was decoded before the first step"


def test_streaming_in_half_precision_takes_what_the_ledger_says(folder):
    unet = load_artifact(folder, dtype=torch.float16, mode="streaming")
    assert footprint(unet).nbytes == read_report(folder).ledger.tensor_bytes


def test_float_weights_are_resident(unet):
    line = nn.Linear(8, 4)
    assert make_ready(line, "streaming", torch.float32) is None
    found = footprint(line)
    assert (found.mode, found.nbytes, found.decoding, found.scratch_nbytes) == ("resident", 4 * 36, "", 0)


@pytest.mark.parametrize("mode", ["resident", "auto"])
@pytest.mark.parametrize("name", ERRORS)
def test_out_of_memory_while_decoding_is_streaming(unet, monkeypatch, name, mode):
    expected = run_unet(unet)
    fail(monkeypatch, ERRORS[name])
    reason = make_ready(unet, mode, torch.float32)
    assert reason is not None
    assert (str(ERRORS[name]).splitlines() or ["MemoryError"])[0] in reason
    assert "\n" not in reason
    assert (mode_of(unet), in_memory(unet)) == ("streaming", 0)
    assert torch.equal(run_unet(unet), expected)


def test_another_error_is_not_swallowed(unet, monkeypatch):
    fail(monkeypatch, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        make_ready(unet, "resident", torch.float32)


@pytest.mark.parametrize("mode", ["Resident", "", "cached"])
def test_a_mode_that_does_not_exist(unet, folder, mode):
    with pytest.raises(ConfigError, match=f"mode must be one of auto, resident, streaming, got '{mode}'"):
        make_ready(unet, mode, torch.float32)
    with pytest.raises(ConfigError, match="mode must be one of"):
        load_artifact(folder, mode=mode)


def test_loading_takes_a_mode(folder, monkeypatch):
    assert [mode_of(load_artifact(folder, mode=mode)) for mode in ("resident", "streaming")] == [
        "resident",
        "streaming",
    ]
    assert mode_of(load_artifact(folder)) == "resident"
    monkeypatch.setattr(modes, "free_nbytes", lambda device: 1000)
    assert mode_of(load_artifact(folder)) == "streaming"
    assert mode_of(load_artifact(folder, mode="resident")) == "resident", "as it was asked for"


def test_loading_warns_once_when_memory_runs_out(folder, monkeypatch, caplog):
    fail(monkeypatch, ERRORS["cuda"])
    with caplog.at_level(logging.WARNING):
        assert mode_of(load_artifact(folder, mode="resident")) == "streaming"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "CUDA out of memory. Tried to allocate 2.00 GiB." in caplog.text
