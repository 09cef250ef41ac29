"""Commands that draw: one image, several arms side by side, arms measured over many prompts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from sdvq_core.cli.options import (
    ARM_HELP,
    Arms,
    Device,
    Dtype,
    EngineWord,
    Guidance,
    Json,
    Mode,
    Model,
    Offload,
    Prompt,
    Seed,
    Steps,
    TextEncoders,
    open_workbench,
    read_sampling,
    read_setup,
)
from sdvq_core.cli.printing import arm_line, last, memory, print_answer, say, size, text_line
from sdvq_core.cli.program import app
from sdvq_core.errors import ConfigError
from sdvq_core.jobs import CompareJob, CompareResult
from sdvq_core.summaries import EvaluateJob, EvaluateResult


@app.command()
def generate(
    model: Model,
    prompt: Prompt,
    out: Annotated[Path, typer.Option(help="PNG file to write.")],
    arm: Annotated[str, typer.Option(help=ARM_HELP)] = "fp16",
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    device: Device = "auto",
    mode: Mode = "auto",
    dtype: Dtype = "auto",
    offload: Offload = False,
    text_encoders: TextEncoders = "16",
    as_json: Json = False,
) -> None:
    """Draw one image with one arm."""
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out must be a .png file, got {out}")
    _check(out.parent)
    sampling = read_sampling(model, prompt, seed, steps, guidance)
    workbench = open_workbench(device, mode=mode, setup=read_setup(dtype, offload, text_encoders))
    whole = last(workbench.generate(model, arm, sampling), CompareResult)
    (result,) = whole.arms
    _copy(result.path, out)
    lines = [str(out), size(result.ledger), memory(result.footprint), *text_line(whole.text)]
    print_answer(as_json, {**result.to_json(), "image": str(out), **_around(whole)}, lines)


@app.command()
def compare(
    model: Model,
    arm: Arms,
    prompt: Prompt,
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the images; default: the data folder.")] = None,
    device: Device = "auto",
    mode: Mode = "auto",
    dtype: Dtype = "auto",
    offload: Offload = False,
    text_encoders: TextEncoders = "16",
    as_json: Json = False,
) -> None:
    """Same prompt, same seed, several arms side by side."""
    _check(out)
    job = CompareJob(model, tuple(arm), read_sampling(model, prompt, seed, steps, guidance))
    workbench = open_workbench(device, mode=mode, setup=read_setup(dtype, offload, text_encoders))
    result = last(workbench.compare(job), CompareResult)
    found = [item.to_json() for item in result.arms]
    for index, item in enumerate(result.arms):
        if out is not None:
            name = "".join(letter if letter.isalnum() else "-" for letter in item.arm)[-60:].strip("-")
            found[index]["image"] = str(_copy(item.path, out / f"{index}-{name}.png"))
    lines = [arm_line(item, found[index]["image"]) for index, item in enumerate(result.arms)]
    head = {"model": model, **asdict(job.sampling), "device": result.device, **_around(result)}
    print_answer(as_json, {**head, "arms": found}, [*lines, *text_line(result.text)])


@app.command()
def evaluate(
    model: Model,
    arm: Arms,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file, one prompt per line; default: the model's own.")
    ] = None,
    n: Annotated[int | None, typer.Option(help="Use N of the prompts, evenly spaced.", min=1)] = None,
    seeds: Annotated[int, typer.Option(help="Images per prompt, each with its own seed.", min=1, max=64)] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder for results.json, .csv, .md and report.html.")] = None,
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    engine: EngineWord = "local",
    device: Device = "auto",
    mode: Mode = "auto",
    dtype: Dtype = "auto",
    offload: Offload = False,
    text_encoders: TextEncoders = "16",
    as_json: Json = False,
) -> None:
    """Measure arms over many prompts, with intervals and noise floors; a run that was stopped goes on where it was."""
    from sdvq_core.calibration import read_prompts
    from sdvq_core.evaluation import markdown, write_report
    from sdvq_core.production import Means
    from sdvq_core.results import evenly

    _check(out)
    setup, means = read_setup(dtype, offload, text_encoders), Means(engine=engine)
    workbench = open_workbench(device, mode=mode, setup=setup, means=means)
    texts = workbench.default_prompts(model) if prompts is None else list(read_prompts(prompts))
    if n is not None and n > len(texts):
        say(f"only {len(texts)} prompts are there; using all of them")
    chosen = tuple(evenly(texts, n or len(texts)))
    job = EvaluateJob(model, tuple(arm), chosen, read_sampling(model, "", seed, steps, guidance), seeds)
    result = last(workbench.evaluate(job), EvaluateResult)
    written = write_report(out, result) if out is not None else []
    print_answer(as_json, {**result.to_json(), "files": [str(path) for path in written]}, [markdown(result).rstrip()])


def _around(result: CompareResult) -> dict[str, Any]:
    """What was the same for all arms."""
    return {"dtype": result.dtype, "text_encoders": None if result.text is None else result.text.to_json()}


def _check(folder: Path | None) -> None:
    """StoreError, before the work, where nothing can be written into the folder for it."""
    from sdvq_core.store import check_folder

    if folder is not None:
        check_folder(folder)


def _copy(source: Path, target: Path) -> Path:
    from sdvq_core.store.images import write_bytes

    return write_bytes(target, source.read_bytes())
