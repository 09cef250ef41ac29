"""`bench`: how fast things are on this machine, beside what others do, both sides measured in one run.

Every row is a ratio of medians whose two sides took turns; times by themselves say little on a shared machine.
"""

from sdvq_core.bench.suites import SUITES, bench, markdown
from sdvq_core.bench.timing import BenchResult, Row

__all__ = ["SUITES", "BenchResult", "Row", "bench", "markdown"]
