"""Which way of a product was faster on this machine's GPU, kept in a file, so that every process chooses alike.

A file per GPU name below the data folder, a line of JSON per case. Lines are only appended, and of two about one case
the first counts: whoever measures second takes what the first has found. To measure anew, delete the file.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

VERSION = 1
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChoiceFile:
    """The files in the folder that `folder` names when it is asked."""

    folder: Callable[[], Path]

    def path(self, device: str) -> Path:
        """The file of the GPU called `device`."""
        return self.folder() / "kernels" / f"{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-') or 'gpu'}.jsonl"

    def read(self, device: str) -> dict[str, bool]:
        """Whether the fused way was faster, by the words of a case; what cannot be read does not count."""
        try:
            lines = self.path(device).read_text("utf-8").splitlines()
        except (OSError, ValueError):
            return {}
        found: dict[str, bool] = {}
        for case, fused in filter(None, map(_entry, lines)):
            found.setdefault(case, fused)
        return found

    def add(self, device: str, case: str, fused: bool, seconds: tuple[float, float]) -> bool | None:
        """Keep a choice; what counts from now on, or None where nothing can be kept."""
        line = {"version": VERSION, "case": case, "fused": fused, "inside": seconds[0], "apart": seconds[1]}
        path = self.path(device)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab", buffering=0) as file:  # one write, and what broke off before it stays apart
                file.write(b"\n" + json.dumps(line).encode())
        except OSError as error:
            log.info("%s cannot be written (%s)", path, error.strerror)
            return None
        return self.read(device).get(case)


def _entry(line: str) -> tuple[str, bool] | None:
    """(case, fused) of a line, or None."""
    try:
        found = json.loads(line)
        case, fused = found["case"], found["fused"]
        known = found["version"] == VERSION
    except (ValueError, TypeError, KeyError):
        return None
    return (case, fused) if known and isinstance(case, str) and isinstance(fused, bool) else None
