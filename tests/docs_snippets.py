"""Runs what a document shows: every fenced ```python block, in order, in one namespace, as a reader would type it.

names: what the document writes in capitals (BASE, ARTIFACT …), given as variables. instead: texts of the document and
what stands for them here, such as a Hub id and the folder of the bundled model. An error points at the document's line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(path: Path) -> list[tuple[int, str]]:
    """(line, code) of every Python block in a Markdown file."""
    text = path.read_text("utf-8")
    return [(text.count("\n", 0, match.start(1)) + 1, match[1]) for match in _BLOCK.finditer(text)]


def run(path: Path, names: Mapping[str, Any], instead: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What the document's variables hold after its last block."""
    space: dict[str, Any] = {"__name__": path.stem, **names}
    for line, code in blocks(path):
        for old, new in (instead or {}).items():
            code = code.replace(old, new)
        exec(compile("\n" * (line - 1) + code, str(path), "exec"), space)
    return space
