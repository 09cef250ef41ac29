"""Runs what a document shows: every fenced ```python block, in order, in one namespace, as a reader would type it.

names: what the document writes in capitals (BASE, ARTIFACT …), given as variables. instead: texts of the document and
what stands for them here, such as a Hub id and the folder of the bundled model. An error points at the document's line.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

_BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PYTHON = "python -m sdvq_core "


def blocks(path: Path, languages: Collection[str] = ("python",)) -> list[tuple[int, str]]:
    """(line, code) of every block of `languages` in a Markdown file."""
    text = path.read_text("utf-8")
    found = [match for match in _BLOCK.finditer(text) if match[1] in languages]
    return [(text.count("\n", 0, match.start(2)) + 1, match[2]) for match in found]


def run(path: Path, names: Mapping[str, Any], instead: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What the document's variables hold after its last block."""
    space: dict[str, Any] = {"__name__": path.stem, **names}
    for line, code in blocks(path):
        _python(path, line, code, space, instead)
    return space


def walk(path: Path, names: Mapping[str, Any], instead: Mapping[str, str] | None = None) -> dict[str, Any]:
    """As `run`, the commands of ```sh blocks as well, each in a process of its own; those of this program alone."""
    space: dict[str, Any] = {"__name__": path.stem, **names}
    shell = {line for line, _ in blocks(path, ("sh",))}
    for line, code in blocks(path, ("python", "sh")):
        if line in shell:
            for command in code.splitlines():
                assert command.startswith(_PYTHON), f"{path}:{line}: {command} is not a command of this program"
                words = shlex.split(command.removeprefix("python "))
                done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
                assert done.returncode == 0, f"{path}:{line}: {command}\n{done.stderr}"
        else:
            _python(path, line, code, space, instead)
    return space


def _python(path: Path, line: int, code: str, space: dict[str, Any], instead: Mapping[str, str] | None) -> None:
    for old, new in (instead or {}).items():
        code = code.replace(old, new)
    exec(compile("\n" * (line - 1) + code, str(path), "exec"), space)
