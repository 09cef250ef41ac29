"""Which suites there are, running them, and their table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from sdvq_core.bench.cluster import ray
from sdvq_core.bench.decode import decode
from sdvq_core.bench.encode import encode
from sdvq_core.bench.full import full
from sdvq_core.bench.gpu import gpu, require_cuda
from sdvq_core.bench.machine import gpu_machine, machine
from sdvq_core.bench.memory import memory
from sdvq_core.bench.nano import e2e, load, step
from sdvq_core.bench.timing import BenchResult, Row
from sdvq_core.errors import ConfigError
from sdvq_core.jobs import Progress

SUITES: dict[str, Callable[[], Iterator[Row]]] = {
    "decode": decode,
    "encode": encode,
    "step": step,
    "load": load,
    "memory": memory,
    "e2e": e2e,
    "full": full,
    "ray": ray,
    "gpu": gpu,
}


def bench(suite: str = "", out: Path | None = None) -> Iterator[Progress | BenchResult]:
    """Progress per row, then the result of one suite, or of all that this machine can run.

    out: a file that gets the machine and every row as a line of JSON at once, so that a run that is cut off leaves
    what it has measured.
    """
    if suite and suite not in SUITES:
        raise ConfigError(f"unknown suite {suite!r}; choose one of {', '.join(SUITES)}, or none for all")
    too_much = {"full", "ray"} if torch.cuda.is_available() else {"full", "ray", "gpu"}  # unless asked for
    wanted = [suite] if suite else [name for name in SUITES if name not in too_much]
    if "gpu" in wanted:
        require_cuda()
    yield Progress("measure", "", 0, len(wanted), "copy bandwidth and matrix products of this machine")
    facts, found = machine(), list[Row]()
    if "gpu" in wanted:
        facts |= gpu_machine()
    _append(out, facts)
    for done, name in enumerate(wanted):
        for row in SUITES[name]():
            found.append(row)
            _append(out, asdict(row))
            yield Progress("measure", name, done, len(wanted), row.case)
    yield BenchResult(facts, tuple(found))


def _append(out: Path | None, line: Mapping[str, object]) -> None:
    if out is None:
        return
    try:
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
    except OSError as error:
        raise ConfigError(
            f"{out} cannot be written ({error.strerror}); choose a file in a folder that exists"
        ) from None


def markdown(result: BenchResult) -> str:
    """The machine in a line, then a table: medians with quartiles, rates, ratios and notes."""
    facts = ", ".join(f"{name} {value}" for name, value in result.machine.items())
    lines = [
        facts,
        "",
        "| suite | case | ms (quartiles) | rate | times as fast, or as small, as | note |",
        "|---" * 6 + "|",
    ]
    for row in result.rows:
        rate = "" if row.rate is None else f"{row.rate:.3g} {row.unit}"
        ratio = "" if row.ratio is None else f"{row.ratio:.3g} × {row.against}"
        lines.append(f"| {row.suite} | {row.case} | {_time(row)} | {rate} | {ratio} | {row.note} |")
    return "\n".join(lines) + "\n"


def _time(row: Row) -> str:
    if row.seconds is None:
        return ""
    spread = "" if row.low is None or row.high is None else f" ({1e3 * row.low:.3g}–{1e3 * row.high:.3g})"
    return f"{1e3 * row.seconds:.3g}{spread}"
