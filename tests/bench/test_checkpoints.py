"""Random checkpoints: real folders and files; the full-size ones within little memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sdvq_core.bench.checkpoints import RandomModel, write_random_file, write_random_folder
from sdvq_core.bench.full_size import random_unet
from sdvq_core.diffusion.base_model import load_base
from sdvq_core.diffusion.fingerprint import fingerprint
from sdvq_core.diffusion.folders import WEIGHTED
from sdvq_core.diffusion.sources import find_source, nano_folder, sdxl_folder

NANO = RandomModel(nano_folder())


def run(steps: Iterator[str]) -> int:
    return len(list(steps))


def test_folder_and_file_hold_the_same_model(tmp_path: Path) -> None:
    written = run(write_random_folder(tmp_path / "folder", NANO, "fp16", 5_000_000))
    assert run(write_random_file(tmp_path / "x.safetensors", NANO)) < written  # three matrices are one there
    assert len(list((tmp_path / "folder" / "unet").glob("*.fp16-0000?-of-*.safetensors"))) > 3
    folder, file = (load_base(find_source(str(tmp_path / name)), "cpu") for name in ("folder", "x.safetensors"))
    assert folder.fingerprint == file.fingerprint
    for part in WEIGHTED:
        ours, theirs = getattr(folder.pipe, part).state_dict(), getattr(file.pipe, part).state_dict()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    unet = random_unet(torch.device("cpu"), torch.float16, NANO.config("unet"))
    assert all(torch.equal(folder.unet.get_parameter(name).half(), value) for name, value in unet.named_parameters())


def test_text_encoders_may_be_short(tmp_path: Path) -> None:
    run(write_random_folder(tmp_path / "folder", RandomModel(nano_folder(), text_layers=1)))
    base = load_base(find_source(str(tmp_path / "folder")), "cpu")
    assert base.pipe.text_encoder_2.config.num_hidden_layers == 1
    assert base.fingerprint == fingerprint(tmp_path / "folder" / "unet")


def test_the_full_size_is_sdxls() -> None:
    sizes = {name: sum(torch.Size(shape).numel() for _, shape in part.specs.values()) for name, part in FULL.items()}
    assert sizes == {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    }


FULL = RandomModel(sdxl_folder()).parts()

WRITE = """
import json, resource, sys
from pathlib import Path
from sdvq_core.bench.checkpoints import *
from sdvq_core.diffusion.base_model import check_files
from sdvq_core.diffusion.fingerprint import fingerprint
from sdvq_core.diffusion.sources import find_source

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

target, kind = Path(sys.argv[1]), sys.argv[2]
model = RandomModel(text_layers=None if kind == "file" else 1)
before = peak()
steps = {
    "file": lambda: write_random_file(target, model),
    "folder": lambda: write_random_folder(target, model, "fp16"),
    "shards": lambda: write_random_folder(target, model, shard_nbytes=2_000_000_000),
}[kind]()
for _ in steps:
    pass
written = peak() - before
source = find_source(str(target))
check_files(source)
print(json.dumps({"written": written, "fingerprint": fingerprint(source), "no_image": source.no_image}))
"""


LOAD = """
import hashlib, json, sys
import torch
from diffusers import StableDiffusionXLPipeline
from sdvq_core.diffusion.single_file import load_single_file
from sdvq_core.diffusion.sources import find_source, sdxl_folder

path, who = sys.argv[1:]
if who == "ours":
    pipe = load_single_file(find_source(path), torch.float16)
else:
    pipe = StableDiffusionXLPipeline.from_single_file(
        path, config=str(sdxl_folder()), dtype=torch.float16, local_files_only=True
    )
found = {}
for part in ("text_encoder", "text_encoder_2", "unet", "vae"):
    digest = hashlib.sha256()
    for name, tensor in sorted(getattr(pipe, part).state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    found[part] = digest.hexdigest()
found["scheduler"] = pipe.scheduler.__class__.__name__
found["words"] = pipe.tokenizer_2("a red apple on a table", padding="max_length").input_ids
print(json.dumps(found))
"""


def python(code: str, *words: str | Path) -> Any:
    """The JSON that a fresh process prints last; offline."""
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, words)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_full_size_checkpoints_are_real_and_written_within_little_memory(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    found = {"file": python(WRITE, file, "file")}
    assert file.stat().st_size > 2 * 3_468_837_867
    assert python(LOAD, file, "ours") == python(LOAD, file, "theirs")
    file.unlink()
    for kind in ("folder", "shards"):
        found[kind] = python(WRITE, tmp_path / kind, kind)
        shutil.rmtree(tmp_path / kind)
    assert max(item["written"] for item in found.values()) < 500_000_000  # the largest tensor has 52 million weights
    assert len({item["fingerprint"] for item in found.values()}) == 1
    assert {item["no_image"] for item in found.values()} == {""}
