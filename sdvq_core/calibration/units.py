"""Units of work: runs of consecutive batches of prompts whose sums are made by one worker, whoever that is.

Floating-point sums depend on their order. It is fixed by the number of batches alone: each unit sums from zero, batch
after batch, and the sums of the units are added in their order, on one machine as on many.
"""

from __future__ import annotations

MOST_UNITS = 8  # each costs a set of second moments on its way, at SDXL's size 13 GB


def units(batches: int) -> list[range]:
    """The numbers of `batches` in order, in `MOST_UNITS` runs at most, of one length but for the last."""
    length = -(-batches // MOST_UNITS)
    return [range(start, min(start + length, batches)) for start in range(0, batches, length)] if batches else []
