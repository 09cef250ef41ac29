"""The table of the Results tab, and the sentences that say what was measured and how to measure it again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from html import escape
from typing import NamedTuple

from sdvq_core.results import Results
from sdvq_core.summaries import ArmSummary, EvaluateResult
from sdvq_core.ui import wording

STAR = "\N{BLACK STAR}"


class Column(NamedTuple):
    """heading, what it means, and an arm's cell."""

    heading: str
    meaning: str
    cell: Callable[[ArmSummary], str]


COLUMNS = (
    Column("bits / weight", "every tensor of the UNet over all its weights", lambda arm: wording.bits(arm.ledger)),
    Column(
        "quantized",
        "codes, codebooks and scales, in bits per weight of the compressed layers",
        lambda arm: wording.quantized_bits(arm.ledger),
    ),
    Column("size", "every tensor of the UNet", lambda arm: wording.size(arm.ledger.tensor_bytes)),
    Column("ratio", "how many times smaller than the fp16 UNet", lambda arm: wording.ratio(arm.ledger)),
    Column("PSNR, dB", "mean and 95 % interval; higher is closer", lambda arm: wording.spread(arm.measures["psnr"], 1)),
    Column("latent error", "median; lower is closer", lambda arm: wording.error(arm.measures["latent_mse"])),
    Column("forks", "images that became another picture", lambda arm: wording.share(arm.fork_rate)),
    Column(
        "alignment",
        "of prompt and image, mean and 95 % interval",
        lambda arm: wording.spread(arm.measures["alignment"], 3),
    ),
    Column("Fréchet", "distance of the two sets of images", lambda arm: wording.fixed(arm.frechet, 4)),
    Column("CMMD", "another distance of the two sets", lambda arm: wording.fixed(arm.cmmd, 4)),
    Column(
        "mode",
        "how weights were kept in memory while drawing; no number here depends on it",
        lambda arm: arm.mode or wording.NONE,
    ),
)


def results_html(measured: EvaluateResult, chosen: Collection[str]) -> str:
    """Arms by size, the chosen ones marked, noise floors at the end; a column that nobody fills is left out."""
    arms = sorted(measured.arms, key=lambda arm: arm.ledger.tensor_bytes)
    shown = [column for column in COLUMNS if any(column.cell(arm) != wording.NONE for arm in (*arms, *measured.floors))]
    heads = "".join(
        f'<th scope="col" title="{escape(column.meaning)}">{escape(column.heading)}</th>' for column in shown
    )
    rows = [_row(arm, arm.arm, shown, "chosen" if arm.arm in chosen else "") for arm in arms]
    rows += [_row(floor, floor.label, shown, "floor") for floor in measured.floors]
    table = f'<table class="results"><thead><tr><th scope="col">arm</th>{heads}</tr></thead>'
    return (
        f'<p class="results-note">Every arm by size. {STAR} is chosen on the Compare tab. The last rows have nothing '
        "compressed: so much differs anyway.</p>"
        '<div class="results-box" tabindex="0" role="region" aria-label="Results">'
        f"{table}<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(arm: ArmSummary, name: str, columns: Sequence[Column], kind: str) -> str:
    star = f"{STAR} " if kind == "chosen" else ""
    cells = "".join(f"<td>{escape(column.cell(arm))}</td>" for column in columns)
    return f'<tr class="{kind}"><th scope="row" title="{escape(arm.label)}">{star}{escape(name)}</th>{cells}</tr>'


def measured_html(results: Results, missing: Sequence[str]) -> str:
    """What was measured, on what, when, and the command for it; which chosen arms are not in it."""
    told = f"<p>{escape(_sentence(results))}</p>"
    if missing:
        names = ", ".join(f"<code>{escape(arm)}</code>" for arm in missing)
        told += (
            f"<p>Chosen, but not measured: {names}. Add each as <code>--arm</code> to the command; what was drawn "
            "already is not drawn again.</p>"
        )
    return f'<div class="measured">{told}{_command("Measure it again", results.command)}</div>'


def _sentence(results: Results) -> str:
    measured, job = results.measured, results.measured.job
    many = f"{len(job.prompts)} prompts {wording.TIMES} {job.seeds} seed{'s' if job.seeds > 1 else ''}"
    how = f"{job.sampling.steps} steps, guidance {job.sampling.guidance:g}"
    parts = [f"{many}, {how}, every arm against {job.arms[0]} at the same seed", measured.device, measured.date]
    parts.append("came with SDVQ" if results.bundled else "your newest evaluation")
    return " · ".join(part for part in parts if part) + "."


def nothing_html(model: str, command: str) -> str:
    """What to do where nothing is measured."""
    told = f"<p>No results for {escape(model)} yet. Measure the arms of the Compare tab, then open this tab again:</p>"
    return f'<div class="measured">{told}{_command("Measure it", command)}</div>'


def mistake_html(text: str) -> str:
    return f'<div class="measured"><p>{escape(text)}</p></div>'


def _command(label: str, command: str) -> str:
    """A command that breaks between its options only."""
    first, *options = command.split(" --")
    parts = " ".join(f"<span>{escape(part)}</span>" for part in (first, *(f"--{option}" for option in options)))
    return f'<pre tabindex="0" role="region" aria-label="{label}"><code>{parts}</code></pre>'
