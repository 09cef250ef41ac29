"""Precision and text encoders change images, never artifacts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sdvq_core.cli.drawing import compare
from sdvq_core.errors import ConfigError
from sdvq_core.jobs import CompareJob, CompareResult, Sampling
from sdvq_core.setup import PLAIN, Setup
from sdvq_core.workbench import Workbench

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
WORDS = ("rtn:bits=4", "gptq:bits=3")


def drawn(data: Path, model: str, setup: Setup) -> tuple[CompareResult, dict[str, bytes]]:
    """(a comparison on an empty data folder, the bytes of every artifact that it made)."""
    bench = Workbench(data, "cpu", setup=setup)
    result = list(bench.compare(CompareJob(model, ("fp16", *WORDS), Sampling("a red frog", 1, 2, 0.0))))[-1]
    assert isinstance(result, CompareResult)
    files = sorted((data / "artifacts").glob("*/*.safetensors"))
    return result, {file.parent.name: file.read_bytes() for file in files}


@pytest.mark.parametrize("setup", [Setup("bf16"), Setup("fp16", offload=True), Setup(text_encoders="rtn:bits=2")])
def test_artifacts_do_not_depend_on_it_and_images_do(setup: Setup, tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    model = str(tiny_pipeline_folder)
    plain, artifacts = drawn(tmp_path / "plain", model, PLAIN)
    other, same = drawn(tmp_path / "other", model, setup)
    assert len(artifacts) == len(WORDS)
    assert same == artifacts
    assert [arm.scores.latent_mse for arm in other.arms] != [arm.scores.latent_mse for arm in plain.arms]
    assert (plain.dtype, other.dtype) == ("fp32", "fp32" if setup.dtype == "auto" else setup.dtype)


def test_what_changes_an_image_is_in_its_key() -> None:
    assert PLAIN.changes(CPU) == PLAIN.changes(CUDA) == Setup("fp32", offload=True).changes(CPU) == ()
    assert Setup("fp32").changes(CUDA) == ("fp32",)
    assert Setup("fp16", False, "rtn:bits=8").changes(CPU) == ("fp16", "text encoders rtn:bits=8")


def test_a_word_that_is_no_dtype_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ConfigError, match="dtype must be one of auto, fp16, bf16, fp32, got 'half'"):
        compare("nano", ["fp16"], "a frog", dtype="half")
