"""Block after block, as VQDM does: a group's statistics are gathered on a model whose earlier groups are compressed.

The seven groups of an SDXL UNet are its 3 down blocks, the middle and its 3 up blocks, in the order of the forward. H
then reflects the errors of earlier groups only; the target stays the original weight. Source: arXiv 2409.00492.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdvq_core.calibration.gather import Gatherer, collect
from sdvq_core.calibration.settings import CalibrationSettings
from sdvq_core.jobs import Notice, Progress
from sdvq_core.records import BaseInfo
from sdvq_core.store import StatsFolder

_BLOCK = re.compile(r"(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.")
_LAST = ("conv_norm_out", "conv_out")


@dataclass(frozen=True, eq=False)
class GroupStats:
    """A group whose layers can be compressed now; `stats` has them and all earlier groups."""

    group: str
    layers: tuple[str, ...]
    stats: StatsFolder


def block_groups(names: Sequence[str]) -> dict[str, list[str]]:
    """Layers by block group, in the order of the forward.

    Layers outside the blocks go with the first group (conv_in, embeddings) or the last (conv_out).
    """
    blocks = {match[1] for name in names if (match := _BLOCK.match(name))}
    order = sorted(blocks, key=_place) or ["model"]
    groups: dict[str, list[str]] = {group: [] for group in order}
    for name in names:
        match = _BLOCK.match(name)
        outside = order[-1] if name.startswith(_LAST) else order[0]
        groups[match[1] if match else outside].append(name)
    return groups


def collect_sequential(
    gatherer: Gatherer,
    groups: Mapping[str, Sequence[str]],
    settings: CalibrationSettings,
    folder: Path,
    base: BaseInfo,
    budget: int | None = None,
) -> Iterator[Progress | Notice | GroupStats]:
    """Like `collect`, group by group; yields a GroupStats when a group's layers can be compressed.

    The caller swaps the compressed layers into the gatherer's model, a copy, before it asks for the next item.
    `settings.context` must name what they are compressed with, for the numbers depend on it. Groups that `folder`
    already has are yielded at once, so that a run which was killed goes on.
    """
    left = _TimeLeft(len(groups))
    for number, (group, names) in enumerate(groups.items()):
        for event in collect(gatherer, names, settings, folder, base, budget):
            if isinstance(event, StatsFolder):
                yield GroupStats(group, tuple(names), event)
            elif isinstance(event, Progress):
                text = f"{group} ({number + 1} of {len(groups)}): {event.text}"
                done, total = number * event.total + event.done, len(groups) * event.total
                yield Progress(event.stage, event.arm, done, total, text, left(number, event.done / event.total))
            else:
                yield event


class _TimeLeft:
    """Seconds to the end of all groups, by what those of this run took, the caller's work between them included."""

    def __init__(self, groups: int) -> None:
        self.groups, self.start, self.kept = groups, time.monotonic(), -1

    def __call__(self, number: int, share: float) -> float | None:
        """After a share of group `number`; groups before the first that is asked for were kept."""
        if self.kept < 0:
            self.kept = number
        done = number + share
        if done == self.kept:
            return None
        return (time.monotonic() - self.start) / (done - self.kept) * (self.groups - done)


def _place(group: str) -> tuple[int, int]:
    kind, _, index = group.partition(".")
    return ("down_blocks", "mid_block", "up_blocks").index(kind), int(index or 0)
