"""Suites on the bundled model: `step` (one UNet call), `load` and `e2e` (one image), 3-bit codes against fp16.

resident: decoded once, at the speed and memory of the float layer. streaming: decoded in every call, at the memory of
the codes. The artifact is made in a folder of its own, data-free.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from sdvq_core.arms import parse_arm
from sdvq_core.bench.timing import Row, in_turns, rows, threads_set_to
from sdvq_core.diffusion.sampling import sample
from sdvq_core.engine import Engine
from sdvq_core.integrations.loading import load_artifact
from sdvq_core.jobs import Sampling

_ARM, _ROUNDS = "rvq:bits=3", 25


@contextmanager
def nano_models() -> Iterator[tuple[Engine, dict[str, Any]]]:
    """The engine, and nano's UNet three times: fp16 weights, resident and streaming codes."""
    engine, arm = Engine(_folder(), "cpu"), parse_arm(_ARM)
    for _ in engine.compress("nano", arm):
        pass
    base, path = engine.base("nano"), engine.shelf.cached("nano", arm)
    assert path is not None
    models = {"fp16": base.unet}
    for mode in ("resident", "streaming"):
        models[f"{_ARM}, {mode}"] = load_artifact(path, base.device, base.dtype, mode)
    yield engine, models


@cache
def _folder() -> Path:
    """Where the artifact lies until this process ends, so that it is made once for all suites."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def step() -> Iterator[Row]:
    """One call of the UNet with both guidance halves of one image."""
    with nano_models() as (engine, models):
        inputs = nano_inputs(engine)
        for threads in sorted({1, torch.get_num_threads()}):
            with threads_set_to(threads):
                yield from _steps(models, inputs, f"{threads} thread{'s' if threads > 1 else ''}")


def _steps(models: dict[str, Any], inputs: dict[str, Any], where: str) -> Iterator[Row]:
    cases = {f"{name}, {where}": lambda unet=unet: call(unet, inputs) for name, unet in models.items()}
    seconds = in_turns(cases, _ROUNDS)
    fp16, resident, _ = cases
    yield from rows("step", {name: seconds[name] for name in cases if name != fp16}, resident)
    yield from rows("step", {name: seconds[name] for name in (fp16, resident)}, fp16)[1:]


def load() -> Iterator[Row]:
    """From files in the page cache to a UNet that has answered once."""
    from diffusers import UNet2DConditionModel

    with nano_models() as (engine, _):
        path, inputs = engine.shelf.cached("nano", parse_arm(_ARM)), nano_inputs(engine)
        assert path is not None
        original = Path(engine.base("nano").source.location) / "unet"
        cases = {
            "fp16": lambda: UNet2DConditionModel.from_pretrained(original),
            f"{_ARM}, streaming": lambda: load_artifact(path, torch.device("cpu"), torch.float32, "streaming"),
            f"{_ARM}, decoded once": lambda: call(
                load_artifact(path, torch.device("cpu"), torch.float32, "resident"), inputs
            ),
        }
        yield from rows("load", in_turns(cases, 5), "fp16")


def e2e() -> Iterator[Row]:
    """One image of 20 steps, without decoding it."""
    with nano_models() as (engine, models):
        base, sampling = engine.base("nano"), Sampling("a red frog on a blue background")
        cases = {name: lambda unet=unet: list(sample(base, unet, sampling)) for name, unet in models.items()}
        yield from rows("e2e", in_turns(cases, 5), "fp16")


def nano_inputs(engine: Engine) -> dict[str, Any]:
    config = engine.base("nano").unet.config
    generator = torch.Generator().manual_seed(0)
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    return {
        "sample": torch.randn(2, config.in_channels, config.sample_size, config.sample_size, generator=generator),
        "timestep": torch.tensor(500.0),
        "encoder_hidden_states": torch.randn(2, 77, config.cross_attention_dim, generator=generator),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(2, pooled, generator=generator),
            "time_ids": torch.zeros(2, 6),
        },
    }


@torch.no_grad()
def call(unet: Any, inputs: dict[str, Any]) -> None:
    unet(**inputs, return_dict=False)
