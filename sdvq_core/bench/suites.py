"""Which suites there are, running them, and their table."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sdvq_core.bench.decode import decode
from sdvq_core.bench.encode import encode
from sdvq_core.bench.machine import machine
from sdvq_core.bench.nano import e2e, load, step
from sdvq_core.bench.timing import BenchResult, Row
from sdvq_core.errors import ConfigError
from sdvq_core.jobs import Progress

SUITES: dict[str, Callable[[], Iterator[Row]]] = {
    "decode": decode,
    "encode": encode,
    "step": step,
    "load": load,
    "e2e": e2e,
}


def bench(suite: str = "") -> Iterator[Progress | BenchResult]:
    """Progress per row, then the result of one suite, or of all."""
    if suite and suite not in SUITES:
        raise ConfigError(f"unknown suite {suite!r}; choose one of {', '.join(SUITES)}, or none for all")
    wanted = [suite] if suite else list(SUITES)
    yield Progress("measure", "", 0, len(wanted), "copy bandwidth and matrix products of this machine")
    facts, found = machine(), list[Row]()
    for done, name in enumerate(wanted):
        for row in SUITES[name]():
            found.append(row)
            yield Progress("measure", name, done, len(wanted), row.case)
    yield BenchResult(facts, tuple(found))


def markdown(result: BenchResult) -> str:
    """The machine in a line, then a table: medians with quartiles, rates and ratios."""
    facts = ", ".join(f"{name} {value}" for name, value in result.machine.items())
    lines = [facts, "", "| suite | case | ms (quartiles) | rate | times as fast as |", "|---" * 5 + "|"]
    for row in result.rows:
        time = f"{1e3 * row.seconds:.3g} ({1e3 * row.low:.3g}–{1e3 * row.high:.3g})"
        rate = "" if row.rate is None else f"{row.rate:.3g} {row.unit}"
        ratio = "" if row.ratio is None else f"{row.ratio:.3g} × {row.against}"
        lines.append(f"| {row.suite} | {row.case} | {time} | {rate} | {ratio} |")
    return "\n".join(lines) + "\n"
