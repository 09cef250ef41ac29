"""Offloading: which part is moved where, in which order; a GPU is not needed to see that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from sdvq_core.diffusion.base_model import BaseModel, load_base
from sdvq_core.diffusion.decoding import decode
from sdvq_core.diffusion.placement import PARTS, Placement
from sdvq_core.diffusion.sampling import sample
from sdvq_core.diffusion.sources import find_source
from sdvq_core.jobs import Sampling

CUDA = torch.device("cuda")


class Recorder:
    """Stands in for the moving itself: notes it, and leaves the parts where they are."""

    def __init__(self, base: BaseModel) -> None:
        self.names = {id(getattr(base.pipe, part)): part for part in PARTS}
        self.moves: list[str] = []

    def __call__(self, module: nn.Module, device: torch.device) -> None:
        self.moves.append(f"{self.names[id(module)]} {device.type}")


@pytest.fixture
def offloaded(tiny_base: BaseModel) -> tuple[BaseModel, Recorder]:
    """The tiny pipeline, as if the CPU were a GPU."""
    recorder = Recorder(tiny_base)
    placement = Placement({part: getattr(tiny_base.pipe, part) for part in PARTS}, CUDA, True, recorder)
    return replace(tiny_base, placement=placement), recorder


def test_a_part_is_on_the_device_only_while_it_works(offloaded: tuple[BaseModel, Recorder]) -> None:
    base, recorder = offloaded
    *_, last = sample(base, base.unet, Sampling("a red frog", steps=2))
    decode(base, last.latents)
    text = ["text_encoder cuda", "text_encoder_2 cuda", "text_encoder cpu", "text_encoder_2 cpu"]
    assert recorder.moves == ["unet cuda", *text, "vae cuda", "vae cpu"]


def test_the_unet_stays_until_it_is_sent_away(offloaded: tuple[BaseModel, Recorder]) -> None:
    base, recorder = offloaded
    assert base.unet is base.unet
    base.placement.rest("unet")
    base.placement.rest("unet")
    assert base.unet is base.pipe.unet
    assert recorder.moves == ["unet cuda", "unet cpu", "unet cuda"]


def test_a_part_comes_home_after_a_failure_too(offloaded: tuple[BaseModel, Recorder]) -> None:
    base, recorder = offloaded
    with pytest.raises(ZeroDivisionError), base.placement.using("vae"):
        _ = 1 / 0
    assert recorder.moves == ["vae cuda", "vae cpu"]


def test_who_uses_a_part_that_is_here_leaves_it_here(offloaded: tuple[BaseModel, Recorder]) -> None:
    base, recorder = offloaded
    base.placement.fetch("vae")
    with base.placement.using("vae"):
        pass
    assert recorder.moves == ["vae cuda"]


def test_on_a_cpu_nothing_moves_and_the_user_is_told(tiny_pipeline_folder: Path) -> None:
    base = load_base(find_source(str(tiny_pipeline_folder)), "cpu", offload=True)
    assert not base.placement.active
    (notice,) = base.told()
    assert "offloading changes nothing on a CPU" in notice
    assert base.told() == []


def test_parts_really_move(tiny_base: BaseModel) -> None:
    """The meta device stands in for another one: what arrives there has no numbers, so only the way out is tried."""
    part = nn.Linear(2, 2)
    placement = Placement({"vae": part}, torch.device("meta"), True)
    placement.fetch("vae")
    assert part.weight.is_meta
