"""Files of every format version decode to the numbers that they decoded to when they were written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sdvq_core.store import FORMAT_VERSION, read_artifact

FOLDERS = sorted(Path(__file__).parent.glob("version-*"))


def test_every_version_has_a_file() -> None:
    names = {folder.name for folder in FOLDERS}
    assert {f"version-{number}" for number in range(1, FORMAT_VERSION + 1)} <= names
    assert {int(name.split("-")[1]) for name in names} <= set(range(1, FORMAT_VERSION + 1))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_old_files_decode_to_the_same_numbers(folder: Path) -> None:
    artifact, wanted = read_artifact(folder), load_file(folder / "decoded.safetensors")
    assert set(artifact.weights) == set(wanted)
    for name, weight in artifact.weights.items():
        torch.testing.assert_close(weight.dequantize(), wanted[name], rtol=0, atol=0, msg=name)
    assert torch.equal(artifact.kept["conv_in.bias"], torch.arange(3, dtype=torch.float16))
