"""Commands that tell what there is: models, quantizers, sizes, report cards, and how fast this machine is."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from sdvq_core.cli.options import (
    ArmWord,
    Json,
    Model,
    open_workbench,
)
from sdvq_core.cli.printing import last, method, model_line, print_answer, size, table
from sdvq_core.cli.program import app


@app.command()
def models(
    model: Annotated[
        str, typer.Argument(metavar="[MODEL]", help="One model, looked up on the Hub where need be.")
    ] = "",
    as_json: Json = False,
) -> None:
    """What can be named, whether it is at hand, and its licence."""
    workbench = open_workbench()
    found = [asdict(info) for info in ([workbench.about_model(model)] if model else workbench.models())]
    lines = [model_line(info) for info in found]
    print_answer(as_json, {"models": found}, lines)


@app.command()
def quantizers(as_json: Json = False) -> None:
    """The quantizers and their knobs, and those of other libraries."""
    workbench = open_workbench()
    found = [asdict(info) for info in workbench.quantizers()]
    peers = [asdict(info) for info in workbench.peers()]
    lines = [line for info in (*found, *peers) for line in method(info)]
    print_answer(as_json, {"quantizers": found, "peers": peers}, lines)


@app.command()
def estimate(model: Model, arm: ArmWord, as_json: Json = False) -> None:
    """The exact size of an arm, before it is made."""
    found = open_workbench().estimate(model, arm)
    about = "" if found.exact else "about "
    answer = {"arm": arm, "exact": found.exact, "ledger": found.ledger.to_json()}
    print_answer(as_json, answer, [f"{found.label}: {about}{size(found.ledger)}"])


@app.command()
def inspect(artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT")], as_json: Json = False) -> None:
    """The report card of an artifact."""
    report = open_workbench().inspect(artifact)
    head = [f"{report.artifact}: {report.recipe} of {report.base.id} ({report.base.fingerprint})", size(report.ledger)]
    print_answer(as_json, report.to_json(), [*head, *table(report)])


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

    result = last(open_workbench().bench(suite, out), BenchResult)
    print_answer(as_json, result.to_json(), [markdown(result).rstrip()])
