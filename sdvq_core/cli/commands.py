"""The commands: words in, one job of the Workbench each, its answer printed. Rules of the contract: see `cli`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from sdvq_core.cli.printing import arm_line, last, memory, method, model_line, print_answer, say, size, table, text_line
from sdvq_core.errors import ConfigError
from sdvq_core.jobs import CompareJob, CompareResult, Sampling
from sdvq_core.records import Report
from sdvq_core.summaries import EvaluateJob, EvaluateResult

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Compress SDXL-family diffusion models by vector quantization, and see what it costs.",
)  # fmt: skip

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


@app.command()
def models(
    model: Annotated[
        str, typer.Argument(metavar="[MODEL]", help="One model, looked up on the Hub where need be.")
    ] = "",
    as_json: Json = False,
) -> None:
    """What can be named, whether it is at hand, and its licence."""
    workbench = _workbench()
    found = [asdict(info) for info in ([workbench.about_model(model)] if model else workbench.models())]
    lines = [model_line(info) for info in found]
    print_answer(as_json, {"models": found}, lines)


@app.command()
def quantizers(as_json: Json = False) -> None:
    """The quantizers and their knobs, and those of other libraries."""
    workbench = _workbench()
    found = [asdict(info) for info in workbench.quantizers()]
    peers = [asdict(info) for info in workbench.peers()]
    lines = [line for info in (*found, *peers) for line in method(info)]
    print_answer(as_json, {"quantizers": found, "peers": peers}, lines)


@app.command()
def estimate(model: Model, arm: ArmWord, as_json: Json = False) -> None:
    """The exact size of an arm, before it is made."""
    found = _workbench().estimate(model, arm)
    about = "" if found.exact else "about "
    answer = {"arm": arm, "exact": found.exact, "ledger": found.ledger.to_json()}
    print_answer(as_json, answer, [f"{found.label}: {about}{size(found.ledger)}"])


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

    chosen = _calibration(calibration, timesteps, statistics, memory)
    workbench = _workbench(
        device,
        chosen,
        setup=_setup("auto", False, text_encoders),
        means=Means(_nbytes("--max-memory", max_memory), engine),
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
    chosen, means = _calibration(calibration, timesteps, statistics, memory), Means(engine=engine)
    recipe = last(_workbench(device, chosen, means=means).tune(model, among, bits, distil), dict)
    write_recipe(out, recipe)
    (rules,) = recipe["allocated"].values()
    print_answer(as_json, {"recipe": str(out), **recipe}, [f"{out}: {len(rules)} rules{_how_to_use(out)}"])


@app.command()
def inspect(artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT")], as_json: Json = False) -> None:
    """The report card of an artifact."""
    report = _workbench().inspect(artifact)
    head = [f"{report.artifact}: {report.recipe} of {report.base.id} ({report.base.fingerprint})", size(report.ledger)]
    print_answer(as_json, report.to_json(), [*head, *table(report)])


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

    done = last(_workbench().export(ExportJob(artifact, out, base, dtype)), Exported)
    line = f"{done.out}: {', '.join(done.parts)} in {done.dtype}, {done.tensors} tensors, {done.nbytes:,} bytes"
    print_answer(as_json, done.to_json(), [line])


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
    sampling = _sampling(model, prompt, seed, steps, guidance)
    workbench = _workbench(device, mode=mode, setup=_setup(dtype, offload, text_encoders))
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
    job = CompareJob(model, tuple(arm), _sampling(model, prompt, seed, steps, guidance))
    workbench = _workbench(device, mode=mode, setup=_setup(dtype, offload, text_encoders))
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

    setup, means = _setup(dtype, offload, text_encoders), Means(engine=engine)
    workbench = _workbench(device, mode=mode, setup=setup, means=means)
    texts = workbench.default_prompts(model) if prompts is None else list(read_prompts(prompts))
    if n is not None and n > len(texts):
        say(f"only {len(texts)} prompts are there; using all of them")
    chosen = tuple(evenly(texts, n or len(texts)))
    job = EvaluateJob(model, tuple(arm), chosen, _sampling(model, "", seed, steps, guidance), seeds)
    result = last(workbench.evaluate(job), EvaluateResult)
    written = write_report(out, result) if out is not None else []
    print_answer(as_json, {**result.to_json(), "files": [str(path) for path in written]}, [markdown(result).rstrip()])


@app.command()
def bench(
    suite: Annotated[
        str,
        typer.Argument(
            metavar="[SUITE]", help="decode, encode, step, load, memory, e2e, full, ray, gpu; default: the short ones."
        ),
    ] = "",
    out: Annotated[Path | None, typer.Option(help="File that gets each row as a line of JSON, at once.")] = None,
    as_json: Json = False,
) -> None:
    """Measure speed on this machine, both sides of every ratio in one run."""
    from sdvq_core.bench import BenchResult, markdown

    result = last(_workbench().bench(suite, out), BenchResult)
    print_answer(as_json, result.to_json(), [markdown(result).rstrip()])


def _how_to_use(recipe: Path) -> str:
    from sdvq_core.presets import FOLDER

    place = FOLDER / "recipes"
    at_hand = recipe.resolve().parent == place.resolve()
    return f", use it as @{recipe.stem}" if at_hand else f"; copy it to {place} to use it as @{recipe.stem}"


def _workbench(device: str = "auto", calibration: Any = None, **settings: Any) -> Any:
    from sdvq_core.workbench import Workbench

    chosen = {} if calibration is None else {"calibration": calibration}
    return Workbench(device=device, **chosen, **settings)


def _nbytes(option: str, gigabytes: float | None) -> int | None:
    if gigabytes is not None and not 0 < gigabytes < 1e6:
        raise ConfigError(f"{option} must be a number of gigabytes above 0, got {gigabytes}")
    return None if gigabytes is None else int(gigabytes * 1e9)


def _setup(dtype: str, offload: bool, text_encoders: str) -> Any:
    from sdvq_core.setup import Setup

    return Setup(dtype, offload, text_encoders)


def _around(result: CompareResult) -> dict[str, Any]:
    """What was the same for all arms."""
    return {"dtype": result.dtype, "text_encoders": None if result.text is None else result.text.to_json()}


def _calibration(prompts: Path | None, timesteps: str, statistics: Path | None, gigabytes: float | None) -> Any:
    from sdvq_core.calibration import read_prompts
    from sdvq_core.statistics import Calibration

    nbytes = _nbytes("--memory", gigabytes)
    texts = () if prompts is None else read_prompts(prompts)
    return Calibration(texts, timesteps, statistics, nbytes)


def _sampling(model: str, prompt: str, seed: int, steps: int | None, guidance: float | None) -> Sampling:
    from sdvq_core.diffusion.sources import find_source

    source = find_source(model)
    return Sampling(
        prompt, seed, source.steps if steps is None else steps, source.guidance if guidance is None else guidance
    )


def _copy(source: Path, target: Path) -> Path:
    from sdvq_core.store.images import write_bytes

    return write_bytes(target, source.read_bytes())
