"""Options that commands share, and what their words mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sdvq_core.errors import ConfigError
from sdvq_core.jobs import Sampling

MODEL_HELP = "nano, sdxl, sdxl-turbo, a diffusers pipeline folder, a .safetensors checkpoint or a Hub id."
ARM_HELP = (
    "fp16, a quantizer such as rtn:bits=4 or rvq:bits=3, a recipe such as @preview, another library on the same layers "
    "such as lib.hqq:bits=4 (on those that it chooses: lib.hqq:bits=4,layers=own), or an artifact folder."
)
Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
ArmWord = Annotated[str, typer.Argument(metavar="ARM", help=ARM_HELP)]
Arms = Annotated[list[str], typer.Option("--arm", help=ARM_HELP + " The first is the reference.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Mode = Annotated[
    str, typer.Option(help="Compressed weights in memory: resident (decoded once), streaming (in every step) or auto.")
]
Dtype = Annotated[str, typer.Option(help="Arithmetic: fp16, bf16, fp32 or auto (fp16 on a GPU, fp32 on a CPU).")]
Offload = Annotated[
    bool, typer.Option("--offload", help="Keep text encoders, VAE and the original UNet off the GPU while idle.")
]
TextEncoders = Annotated[
    str, typer.Option(help="Text encoders: 16, as they are, or a quantizer for both, such as rtn:bits=8 or rvq:bits=4.")
]
Prompt = Annotated[str, typer.Option(help="What to draw; may be empty.")]
Seed = Annotated[int, typer.Option(help="Same seed, same image.")]
Steps = Annotated[int | None, typer.Option(help="Denoising steps; default: what suits the model.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale; default: what suits the model.")]
OwnPrompts = Annotated[
    Path | None, typer.Option("--calibration", help="Text file of prompts to calibrate on, one per line.")
]
Timesteps = Annotated[str, typer.Option(help="Weight of steps in calibration: uniform, early, late or numbers, 3,2,1.")]
Statistics = Annotated[
    Path | None, typer.Option(help="Folder of layer statistics to use, of this model or of one with the same layers.")
]
Memory = Annotated[float | None, typer.Option(help="Gigabytes for statistics; default: half of what is free.", min=0)]

EngineWord = Annotated[str, typer.Option("--engine", help="Who works: local, or ray, a Ray cluster (RAY_ADDRESS).")]
MaxMemory = Annotated[
    float | None, typer.Option(help="Gigabytes that compressing may take; default: what is free.", min=0)
]


def open_workbench(device: str = "auto", calibration: Any = None, **settings: Any) -> Any:
    from sdvq_core.workbench import Workbench

    chosen = {} if calibration is None else {"calibration": calibration}
    return Workbench(device=device, **chosen, **settings)


def read_nbytes(option: str, gigabytes: float | None) -> int | None:
    if gigabytes is not None and not 0 < gigabytes < 1e6:
        raise ConfigError(f"{option} must be a number of gigabytes above 0, got {gigabytes}")
    return None if gigabytes is None else int(gigabytes * 1e9)


def read_setup(dtype: str, offload: bool, text_encoders: str) -> Any:
    from sdvq_core.setup import Setup

    return Setup(dtype, offload, text_encoders)


def read_calibration(prompts: Path | None, timesteps: str, statistics: Path | None, gigabytes: float | None) -> Any:
    from sdvq_core.calibration import read_prompts
    from sdvq_core.statistics import Calibration

    nbytes = read_nbytes("--memory", gigabytes)
    texts = () if prompts is None else read_prompts(prompts)
    return Calibration(texts, timesteps, statistics, nbytes)


def read_sampling(model: str, prompt: str, seed: int, steps: int | None, guidance: float | None) -> Sampling:
    from sdvq_core.diffusion.hub import fetched
    from sdvq_core.diffusion.sources import find_source

    if steps is None or guidance is None:
        source = fetched(find_source(model))  # a name alone does not say how a model is sampled
        steps, guidance = source.steps if steps is None else steps, source.guidance if guidance is None else guidance
    return Sampling(prompt, seed, steps, guidance)
