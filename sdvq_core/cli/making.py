"""Commands that make files: artifacts, recipes, plain weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdvq_core.cli.options import (
    ArmWord,
    Device,
    EngineWord,
    Json,
    MaxMemory,
    Memory,
    Model,
    OwnPrompts,
    Statistics,
    TextEncoders,
    Timesteps,
    open_workbench,
    read_calibration,
    read_nbytes,
    read_setup,
)
from sdvq_core.cli.printing import last, print_answer, size, table, text_line
from sdvq_core.cli.program import app
from sdvq_core.errors import ConfigError
from sdvq_core.records import Report


@app.command()
def compress(
    model: Model,
    arm: ArmWord,
    out: Annotated[Path | None, typer.Option(help="Folder for the artifact; default: the cache.")] = None,
    calibration: OwnPrompts = None,
    timesteps: Timesteps = "uniform",
    statistics: Statistics = None,
    memory: Memory = None,
    max_memory: MaxMemory = None,
    resume: Annotated[bool, typer.Option(help="Go on where an earlier run stopped.")] = True,
    partial: Annotated[
        bool,
        typer.Option("--partial", help="Compute nothing: write the layers finished so far to --out, rest in 16 bits."),
    ] = False,
    engine: EngineWord = "local",
    text_encoders: TextEncoders = "16",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Compress a model's UNet into an artifact that diffusers loads."""
    from sdvq_core.production import Means

    chosen = read_calibration(calibration, timesteps, statistics, memory)
    workbench = open_workbench(
        device,
        chosen,
        setup=read_setup("auto", False, text_encoders),
        means=Means(read_nbytes("--max-memory", max_memory), engine),
    )
    if partial and out is None:
        raise ConfigError("--partial writes an artifact of its own: name its folder with --out")
    report = (
        workbench.partial(model, arm, out) if partial else last(workbench.compress(model, arm, out, resume), Report)
    )
    text = workbench.export_text_encoders(model, report.artifact if out else None)
    answer = report.to_json() | ({"text_encoders": text.to_json()} if text else {})
    print_answer(as_json, answer, [report.artifact, size(report.ledger), *text_line(text), *table(report)])


@app.command()
def tune(
    model: Model,
    out: Annotated[Path, typer.Option(help="Recipe file to write, such as presets/recipes/mine.yaml.")],
    among: Annotated[list[str], typer.Option(help="A quantizer to choose among, such as tcq:bits=3; give several.")],
    bits: Annotated[float, typer.Option(help="Most bits per quantized weight, codebooks included.", min=0.5, max=16)],
    updates: Annotated[int, typer.Option(help="Updates of distillation in the recipe; 0: none.", min=0)] = 0,
    calibration: OwnPrompts = None,
    timesteps: Timesteps = "uniform",
    statistics: Statistics = None,
    memory: Memory = None,
    engine: EngineWord = "local",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Allocate bits to layers by measured damage, and write the result as a recipe for this model."""
    from sdvq_core.distillation import DistillationSettings
    from sdvq_core.production import Means
    from sdvq_core.recipes import write_recipe

    distil = DistillationSettings(updates=updates) if updates else None
    chosen, means = read_calibration(calibration, timesteps, statistics, memory), Means(engine=engine)
    recipe = last(open_workbench(device, chosen, means=means).tune(model, among, bits, distil), dict)
    write_recipe(out, recipe)
    (rules,) = recipe["allocated"].values()
    print_answer(as_json, {"recipe": str(out), **recipe}, [f"{out}: {len(rules)} rules{_how_to_use(out)}"])


@app.command()
def export(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT")],
    out: Annotated[Path, typer.Option(help="Folder, or file *.safetensors in the original SDXL layout.")],
    base: Annotated[
        str | None, typer.Option(help="Model that gives text encoders and VAE; default: UNet alone.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="fp16, bf16 or fp32.")] = "fp16",
    as_json: Json = False,
) -> None:
    """Write an artifact back as plain weights, for diffusers without SDVQ or for other programs."""
    from sdvq_core.export import Exported, ExportJob

    done = last(open_workbench().export(ExportJob(artifact, out, base, dtype)), Exported)
    line = f"{done.out}: {', '.join(done.parts)} in {done.dtype}, {done.tensors} tensors, {done.nbytes:,} bytes"
    print_answer(as_json, done.to_json(), [line])


def _how_to_use(recipe: Path) -> str:
    from sdvq_core.presets import FOLDER

    place = FOLDER / "recipes"
    at_hand = recipe.resolve().parent == place.resolve()
    return f", use it as @{recipe.stem}" if at_hand else f"; copy it to {place} to use it as @{recipe.stem}"
