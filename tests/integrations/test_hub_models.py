"""`push_to_hub` and loading by repository id, against a Hub on this machine: real requests, real files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sdvq_core.store import read_artifact

PUSH_AND_PULL = """
import sys
import sdvq_core
from diffusers import UNet2DConditionModel

UNet2DConditionModel.from_pretrained(sys.argv[1]).push_to_hub("me/vq", token="hf_test", commit_message="3 bits")
again = UNet2DConditionModel.from_pretrained("me/vq")
again.save_pretrained(sys.argv[2])
"""


@pytest.fixture
def hub(tmp_path):
    """(address, folder) of a running Hub."""
    folder = tmp_path / "hub"
    folder.mkdir()
    command = [sys.executable, Path(__file__).with_name("writable_hub.py"), folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}", folder
        server.terminate()


def test_a_compressed_unet_is_pushed_and_loaded_by_its_name(hub, nano_artifact, tmp_path):
    address, folder = hub
    settings = {
        "HF_ENDPOINT": address,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "home"),
    }
    command = [sys.executable, "-c", PUSH_AND_PULL, nano_artifact, tmp_path / "again"]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {"README.md", "config.json", "diffusion_pytorch_model.safetensors"} <= {
        path.name for path in folder.iterdir()
    }
    assert read_artifact(folder).manifest == read_artifact(nano_artifact).manifest
    assert read_artifact(tmp_path / "again").manifest == read_artifact(nano_artifact).manifest
