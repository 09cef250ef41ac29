"""What the documents show works: every Python block of them is run, with the bundled model where they name another."""

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from docs_snippets import blocks, run, walk

from sdvq_core.diffusion.components import part_of_folder, write_single_file
from sdvq_core.diffusion.folders import WEIGHTED
from sdvq_core.diffusion.sources import nano_folder

ROOT = Path(__file__).resolve().parents[1]
DIFFUSERS, SDXL = ROOT / "docs" / "diffusers.md", ROOT / "docs" / "sdxl.md"


def test_a_block_that_fails_points_at_its_line(tmp_path):
    path = tmp_path / "a.md"
    path.write_text(
        "# A\n\n```python\nx = SIZE\n```\n\n```bash\nfalse\n```\n\n```python\nassert x == 3, 'wrong'\n```\n"
    )
    assert [line for line, _ in blocks(path)] == [4, 12]
    assert run(path, {"SIZE": 3})["x"] == 3
    assert run(path, {"SIZE": 2}, {"x == 3": "x == 2"})["x"] == 2
    with pytest.raises(AssertionError, match="wrong") as found:
        run(path, {"SIZE": 4})
    assert (str(found.traceback[-1].path), found.traceback[-1].lineno + 1) == (str(path), 12)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_the_diffusers_document(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDVQ_DATA", str(tmp_path / "data"))
    base, artifact = ROOT / "assets" / "nano", tmp_path / "artifact"
    command = [sys.executable, "-m", "sdvq_core", "compress", "nano", "rvq:bits=3", "--out", str(artifact)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    lora = tmp_path / "lora.safetensors"
    write_lora(lora, artifact)
    names = {"BASE": str(base), "ARTIFACT": str(artifact), "LORA": str(lora), "DEVICE": "cpu"}
    found = run(DIFFUSERS, names)
    assert found["image"].size == (64, 64)
    assert len(blocks(DIFFUSERS)) >= 8


def test_from_a_checkpoint_to_a_running_pipeline(tmp_path, monkeypatch):
    """docs/sdxl.md from its first command to its last, on nano as one file in the original layout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDVQ_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with ExitStack() as stack:
        parts = {part: part_of_folder(nano_folder() / part, stack) for part in WEIGHTED}
        for _ in write_single_file(tmp_path / "my-model.safetensors", parts):
            pass
    # diffusers tells SDXL's two text encoders apart by their width, and nano's are equally wide
    single = 'from_single_file("my-model.safetensors", config="assets/sdxl", '
    found = walk(SDXL, {}, {single: f'from_pretrained("{nano_folder()}", '})
    assert found["image"].size == (64, 64)
    assert (tmp_path / "decoded.safetensors").is_file()
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 3


def write_lora(path: Path, artifact: Path) -> None:
    """A LoRA for the attention of the model in `artifact`, as PEFT and diffusers save it."""
    from safetensors.torch import save_file

    from sdvq_core import load_artifact
    from sdvq_core.nn import quantized_layers

    weights = {}
    for name, layer in quantized_layers(load_artifact(artifact)):
        if name.endswith(("to_q", "to_v")):
            out, into = layer.shape
            weights[f"unet.{name}.lora_A.weight"] = torch.full((2, into), 0.01)
            weights[f"unet.{name}.lora_B.weight"] = torch.full((out, 2), 0.01)
    save_file(weights, path)
