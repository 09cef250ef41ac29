"""The command line of the contract (DESIGN.md, section 5): progress on stderr, `--json` puts one object on stdout.

A user's mistake is one line and exit code 2, never a traceback.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from sdvq_core.errors import ConfigError, SdvqError, StoreError
from sdvq_core.jobs import ArmResult, CompareJob, CompareResult, EvaluateJob, EvaluateResult, Notice, Progress, Sampling
from sdvq_core.records import Ledger, Report

T = TypeVar("T")
UsageError: Any = typer.BadParameter.__mro__[1]  # of the click that typer uses, which may be its own

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Compress SDXL-family diffusion models by vector quantization, and see what it costs.",
)  # fmt: skip

MODEL_HELP = "nano, sdxl, sdxl-turbo, a diffusers pipeline folder, a .safetensors checkpoint or a Hub id."
ARM_HELP = "fp16, a quantizer such as rtn:bits=4 or rvq:bits=3, a recipe such as @preview, or an artifact folder."
Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
ArmWord = Annotated[str, typer.Argument(metavar="ARM", help=ARM_HELP)]
Arms = Annotated[list[str], typer.Option("--arm", help=ARM_HELP + " The first is the reference.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Prompt = Annotated[str, typer.Option(help="What to draw; may be empty.")]
Seed = Annotated[int, typer.Option(help="Same seed, same image.")]
Steps = Annotated[int | None, typer.Option(help="Denoising steps; default: what suits the model.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale; default: what suits the model.")]


def main() -> None:
    """Entry point: run, and turn a user's mistake into one line and exit code 2."""
    _quiet()
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except UsageError as error:
        _fail(error.format_message())
    except SdvqError as error:
        _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        _say("stopped")
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


@app.command()
def models(as_json: Json = False) -> None:
    """What can be named, and whether it is at hand."""
    found = [asdict(info) for info in _workbench().models()]
    lines = [f"{m['name']:12} {'at hand' if m['at_hand'] else 'not here':9} {m['label']}: {m['note']}" for m in found]
    _print(as_json, {"models": found}, lines)


@app.command()
def quantizers(as_json: Json = False) -> None:
    """The quantizers and their knobs."""
    found = [asdict(info) for info in _workbench().quantizers()]
    lines = []
    for info in found:
        widths = ", ".join(f"{bits:g}" for bits in info["bit_widths"])
        lines += [f"{info['name']:8} {info['summary']}", f"{'':8} bits: {widths}"]
        for knob in info["knobs"]:
            allowed = ", ".join(map(str, knob["choices"])) or f"{knob['low']:g} to {knob['high']:g}"
            lines.append(f"{'':8} {knob['name']}={knob['default']}  ({knob['label']}: {allowed})")
    _print(as_json, {"quantizers": found}, lines)


@app.command()
def estimate(model: Model, arm: ArmWord, as_json: Json = False) -> None:
    """The exact size of an arm, before it is made."""
    found = _workbench().estimate(model, arm)
    _print(as_json, {"arm": arm, "ledger": found.ledger.to_json()}, [f"{found.label}: {_size(found.ledger)}"])


@app.command()
def compress(
    model: Model,
    arm: ArmWord,
    out: Annotated[Path | None, typer.Option(help="Folder for the artifact; default: the cache.")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Compress a model's UNet into an artifact that diffusers loads."""
    report = _last(_workbench(device).compress(model, arm, out), Report)
    _print(as_json, report.to_json(), [f"{report.artifact}", f"{_size(report.ledger)}", *_table(report)])


@app.command()
def tune(
    model: Model,
    out: Annotated[Path, typer.Option(help="Recipe file to write, such as presets/recipes/mine.yaml.")],
    among: Annotated[list[str], typer.Option(help="A quantizer to choose among, such as tcq:bits=3; give several.")],
    bits: Annotated[float, typer.Option(help="Most bits per quantized weight, codebooks included.", min=0.5, max=16)],
    updates: Annotated[int, typer.Option(help="Updates of distillation in the recipe; 0: none.", min=0)] = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Allocate bits to layers by measured damage, and write the result as a recipe for this model."""
    from sdvq_core.distillation import DistillationSettings
    from sdvq_core.presets import write_recipe

    distil = DistillationSettings(updates=updates) if updates else None
    recipe = _last(_workbench(device).tune(model, among, bits, distil), dict)
    write_recipe(out, recipe)
    _print(as_json, {"recipe": str(out), **recipe}, [f"{out}: {len(recipe['rules'])} rules, use it as @{out.stem}"])


@app.command()
def inspect(artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT")], as_json: Json = False) -> None:
    """The report card of an artifact."""
    report = _workbench().inspect(artifact)
    head = [f"{report.artifact}: {report.recipe} of {report.base.id} ({report.base.fingerprint})", _size(report.ledger)]
    _print(as_json, report.to_json(), [*head, *_table(report)])


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
    as_json: Json = False,
) -> None:
    """Draw one image with one arm."""
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out must be a .png file, got {out}")
    sampling = _sampling(model, prompt, seed, steps, guidance)
    result = _last(_workbench(device).generate(model, arm, sampling), ArmResult)
    _copy(result.path, out)
    _print(as_json, {**result.to_json(), "image": str(out)}, [str(out), _size(result.ledger)])


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
    as_json: Json = False,
) -> None:
    """Same prompt, same seed, several arms side by side."""
    job = CompareJob(model, tuple(arm), _sampling(model, prompt, seed, steps, guidance))
    result = _last(_workbench(device).compare(job), CompareResult)
    found = [item.to_json() for item in result.arms]
    for index, item in enumerate(result.arms):
        if out is not None:
            name = "".join(letter if letter.isalnum() else "-" for letter in item.arm)[-60:].strip("-")
            found[index]["image"] = str(_copy(item.path, out / f"{index}-{name}.png"))
    lines = [_arm_line(item, found[index]["image"]) for index, item in enumerate(result.arms)]
    settings = asdict(job.sampling)
    _print(as_json, {"model": model, **settings, "device": result.device, "arms": found}, lines)


@app.command()
def evaluate(
    model: Model,
    arm: Arms,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file, one prompt per line; default: the model's own.")
    ] = None,
    n: Annotated[int | None, typer.Option(help="Use N of the prompts, evenly spaced.", min=1)] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for results.json, .csv and .md.")] = None,
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure arms over many prompts, with intervals and the noise floor of another seed."""
    from sdvq_core.evaluation import markdown, write_report

    workbench = _workbench(device)
    texts = workbench.default_prompts(model) if prompts is None else _read_prompts(prompts)
    if n is not None and n > len(texts):
        _say(f"only {len(texts)} prompts are there; using all of them")
    count = min(n or len(texts), len(texts))
    chosen = tuple(texts[i * len(texts) // count] for i in range(count))
    job = EvaluateJob(model, tuple(arm), chosen, _sampling(model, "", seed, steps, guidance))
    result = _last(workbench.evaluate(job), EvaluateResult)
    written = write_report(out, result) if out is not None else []
    _print(as_json, {**result.to_json(), "files": [str(path) for path in written]}, [markdown(result).rstrip()])


def _workbench(device: str = "auto") -> Any:
    from sdvq_core.workbench import Workbench

    return Workbench(device=device)


def _sampling(model: str, prompt: str, seed: int, steps: int | None, guidance: float | None) -> Sampling:
    from sdvq_core.diffusion.sources import find_source

    source = find_source(model)
    return Sampling(
        prompt, seed, source.steps if steps is None else steps, source.guidance if guidance is None else guidance
    )


def _last(events: Iterator[Any], wanted: type[T]) -> T:
    """Run to the end, showing progress; the last event of the wanted type."""
    found: T | None = None
    show = _progress_line()
    for event in events:
        if isinstance(event, Progress):
            show(event)
        elif isinstance(event, Notice):
            _say(f"note: {event.text}")
        elif isinstance(event, wanted):
            found = event
    show(None)
    assert found is not None
    return found


def _progress_line() -> Callable[[Progress | None], None]:
    """A function that draws progress: in place on a terminal, one line per stage and arm elsewhere."""
    state: dict[str, object] = {"last": None}

    def show(event: Progress | None) -> None:
        live = sys.stderr.isatty()
        if event is None:
            if live and state["last"]:
                sys.stderr.write("\n")
            return
        left = "" if event.seconds_left is None else f", {event.seconds_left:.0f} s left"
        text = f"{event.stage} {event.arm} {event.done}/{event.total}{left}  {event.text}"
        if live:
            sys.stderr.write("\r\x1b[K" + text[: shutil.get_terminal_size().columns - 1])
            sys.stderr.flush()
        elif event.done == event.total or (event.stage, event.arm) != state["last"]:
            sys.stderr.write(text + "\n")
        state["last"] = (event.stage, event.arm)

    return show


def _print(as_json: bool, data: dict[str, Any], lines: list[str]) -> None:
    sys.stdout.write((json.dumps(data, allow_nan=False) if as_json else "\n".join(lines)) + "\n")


def _size(ledger: Ledger) -> str:
    quantized = ledger.bits_per_quantized_weight
    inner = "" if quantized is None else f" ({quantized:.3f} per quantized weight)"
    bits = f"{ledger.bits_per_weight:.3f} bits per weight{inner}"
    return f"{ledger.tensor_bytes:,} bytes, {bits}, {ledger.ratio:.2f}x smaller than fp16"


def _table(report: Report) -> list[str]:
    rows = [f"{r.name:74} {r.bits_per_weight:7.3f} {r.nbytes:10,} {r.relative_mse:.3e}" for r in report.layers]
    kept = [f"{item.layer:74} kept in 16 bits: {item.reason}" for item in report.ledger.fallbacks]
    return [f"{'layer':74} {'bits':>7} {'bytes':>10} relative error", *rows, *kept]


def _arm_line(item: ArmResult, image: str) -> str:
    scores = item.scores
    psnr = "" if scores.psnr is None else f"  {scores.psnr:.2f} dB"
    return f"{item.arm:24} {item.ledger.bits_per_weight:7.3f} bits {item.seconds:6.2f} s{psnr}  {image}"


def _copy(source: Path, target: Path) -> Path:
    from sdvq_core.store.images import write_bytes

    return write_bytes(target, source.read_bytes())


def _read_prompts(path: Path) -> list[str]:
    try:
        found = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} cannot be read as a text file with one prompt per line ({error})") from None
    if not found:
        raise ConfigError(f"{path} has no prompts; write one per line")
    return found


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def _fail(text: str) -> None:
    _say("error: " + " ".join(text.split()))
    sys.exit(2)


def _quiet() -> None:
    """Other libraries' chatter stays off a command's output."""
    warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
