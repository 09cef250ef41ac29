"""Models from the Hub: the real client of huggingface_hub against a small Hub on this machine."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from diffusers import UNet2DConditionModel
from huggingface_hub import constants

from sdvq_core import SdvqConfig, Workbench
from sdvq_core.diffusion.base_model import check_files, load_base
from sdvq_core.diffusion.fingerprint import fingerprint
from sdvq_core.diffusion.hub import cached_licence, licence_words, needed
from sdvq_core.diffusion.sources import at_hand, find_source
from sdvq_core.errors import ModelError, SdvqError
from sdvq_core.records import BaseInfo
from sdvq_core.store import read_manifest
from tests.diffusion.fake_hub import FakeHub, folder_files, serving

COMMITS = {"main": "a" * 40, "v2": "b" * 40}
UNET = "unet/diffusion_pytorch_model.safetensors"
CARD = "---\nlicense: openrail++\n---\n# Tiny\n"
EXTRA = {
    "unet/diffusion_pytorch_model.bin": b"pickle",
    "unet/diffusion_flax_model.msgpack": b"flax",
    "unet/openvino_model.bin": b"other",
    "sd_xl_base_1.0.safetensors": b"single file",
    "vae_1_0/diffusion_pytorch_model.safetensors": b"another VAE",
    "vae_encoder/model.onnx": b"onnx",
    "pipeline.png": b"picture",
    "README.md": CARD.encode(),
}
Load = Callable[..., dict[str, Any]]


@pytest.fixture
def hub(tiny_pipeline_folder: Path) -> Iterator[FakeHub]:
    files = folder_files(tiny_pipeline_folder) | EXTRA
    with serving(FakeHub("owner/tiny", files, COMMITS, {"license": "openrail++"})) as served:
        yield served


@pytest.fixture
def load(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Load:
    """Load a model from an empty Hugging Face home; the client's constants are what it reads from the environment."""
    own = {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "home" / "hub"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "DOWNLOAD_CHUNK_SIZE": 1000,
    }
    for name, value in own.items():
        monkeypatch.setattr(constants, name, value)

    def call(model: str = "owner/tiny", token: str = "", **changes: object) -> dict[str, Any]:
        caplog.clear()
        with monkeypatch.context() as patch:
            patch.setenv("HF_TOKEN", token)
            for name, value in changes.items():
                patch.setattr(constants, name, value)
            source = find_source(model)
            before = at_hand(source)
            try:
                answer = fingerprint(source)
            except SdvqError as error:
                answer = f"{type(error).__name__}: {error}"
            return {"answer": answer, "before": before, "after": at_hand(source), "log": caplog.text}

    return call


def snapshot(tmp_path: Path, commit: str = COMMITS["main"]) -> Path:
    return tmp_path / "home" / "hub" / "models--owner--tiny" / "snapshots" / commit


def test_only_what_is_needed_is_downloaded_once(
    hub: FakeHub, load: Load, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    first = load()
    assert first["answer"] == fingerprint(tiny_pipeline_folder / "unet")
    assert (first["before"], first["after"]) == (False, True)
    assert "GB of owner/tiny, licence: openrail++" in first["log"]
    wanted = {name for name in hub.files if name not in EXTRA} | {"README.md"}
    assert set(folder_files(snapshot(tmp_path))) == wanted
    assert set(hub.served) <= wanted  # equal files once
    assert {hub.files[name] for name in hub.served} == {hub.files[name] for name in wanted}
    assert cached_licence(snapshot(tmp_path)) == "openrail++"
    hub.served.clear()
    again = load()
    assert (again["answer"], again["before"], hub.served) == (first["answer"], True, [])


def test_a_cached_model_needs_no_hub(hub: FakeHub, load: Load) -> None:
    expected = load()["answer"]
    hub.down = True
    assert load()["answer"] == load(HF_HUB_OFFLINE=True)["answer"] == expected


def test_the_fp16_variant_is_preferred(hub: FakeHub, load: Load, tiny_pipeline_folder: Path) -> None:
    for name in [name for name in hub.files if name.endswith("model.safetensors") and name not in EXTRA]:
        hub.files[name.replace(".safetensors", ".fp16.safetensors")] = hub.files[name]
        hub.files[name] = b"full precision"
    assert load()["answer"] == fingerprint(tiny_pipeline_folder / "unet")
    assert not [name for name in hub.served if name.endswith("model.safetensors")]


def test_a_revision_is_another_snapshot(hub: FakeHub, load: Load, tmp_path: Path) -> None:
    load("owner/tiny@v2")
    assert snapshot(tmp_path, COMMITS["v2"]).is_dir()
    assert not snapshot(tmp_path).exists()
    assert load("owner/tiny@" + COMMITS["v2"], HF_HUB_OFFLINE=True)["before"]
    assert not load("owner/tiny", HF_HUB_OFFLINE=True)["before"]
    assert "has no revision 'v9'; name a branch, a tag or a commit" in load("owner/tiny@v9")["answer"]


def edit(hub: FakeHub, name: str, **changes: object) -> None:
    hub.files[name] = json.dumps({**json.loads(hub.files[name]), **changes}).encode()


NO_IMAGE = {
    "refiner": (
        ("model_index.json", {"text_encoder": [None, None], "tokenizer": [None, None]}),
        "it has no text_encoder and no tokenizer, like SDXL's refiner",
    ),
    "inpainting": (("unet/config.json", {"in_channels": 9}), "it is an inpainting UNet (9 channels in, 4 out)"),
}


@pytest.mark.parametrize("kind", NO_IMAGE)
def test_what_draws_no_image_says_why_and_its_unet_can_be_read(hub: FakeHub, load: Load, kind: str) -> None:
    (name, changes), reason = NO_IMAGE[kind]
    edit(hub, name, **changes)
    if kind == "refiner":
        hub.files = {
            file: data for file, data in hub.files.items() if not file.startswith(("text_encoder/", "tokenizer/"))
        }
    with pytest.raises(ModelError) as caught:
        load_base(find_source("owner/tiny"), "cpu")
    sentence = f"no image can be drawn with owner/tiny, nor statistics gathered on it: {reason}"
    assert str(caught.value) == sentence
    assert find_source("owner/tiny").no_image == reason
    assert load()["before"]
    if kind == "refiner":
        check_files(find_source("owner/tiny"))


@pytest.mark.parametrize("tells_class", [True, False])
def test_another_family_is_refused_before_its_weights_are_fetched(hub: FakeHub, load: Load, tells_class: bool) -> None:
    hub.tells_class = tells_class
    edit(hub, "model_index.json", _class_name="StableDiffusionPipeline")
    answer = load()["answer"]
    assert "owner/tiny is a StableDiffusionPipeline; SDVQ reads SDXL-family pipelines (" in answer
    assert not [name for name in hub.served if name.endswith(".safetensors")]
    assert tells_class == (not hub.served)


def test_another_unet_is_refused_before_its_weights_are_fetched(hub: FakeHub, load: Load) -> None:
    edit(hub, "unet/config.json", addition_embed_type=None)
    assert "the UNet in owner/tiny is not SDXL's: SDVQ reads" in load()["answer"]
    assert "unet/config.json" in hub.served
    assert not [name for name in hub.served if name.endswith(".safetensors")]


def test_turbos_scheduler_gives_turbos_habits(hub: FakeHub, load: Load) -> None:
    turbos = {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}
    edit(hub, "scheduler/scheduler_config.json", **turbos)
    edit(hub, "model_index.json", scheduler=["diffusers", "EulerAncestralDiscreteScheduler"])
    base = load_base(find_source("owner/tiny"), "cpu")
    assert (base.source.steps, base.source.guidance, base.source.resolution) == (2, 0, 32)
    assert type(base.pipe.scheduler).__name__ == "EulerAncestralDiscreteScheduler"
    assert base.source == find_source("owner/tiny")


@pytest.mark.parametrize("revision", COMMITS)
def test_an_artifact_says_which_commit_it_was_made_from(load: Load, tmp_path: Path, revision: str) -> None:
    model = "owner/tiny" if revision == "main" else f"owner/tiny@{revision}"
    wanted = load(model)["answer"]
    (*_, report) = Workbench(tmp_path / "data", "cpu").compress(model, "rtn", tmp_path / "artifact")
    assert report.base == BaseInfo(f"owner/tiny@{COMMITS[revision]}", wanted)
    assert read_manifest(tmp_path / "artifact")[1].base == report.base
    assert find_source(report.base.id).revision == COMMITS[revision]
    unet = UNet2DConditionModel.from_pretrained(
        snapshot(tmp_path, COMMITS[revision]) / "unet", quantization_config=SdvqConfig("rtn:bits=4")
    )
    assert unet.config.quantization_config.manifest.base == report.base


def test_a_lost_connection_is_taken_up_where_it_broke(hub: FakeHub, load: Load, tmp_path: Path) -> None:
    hub.cut[UNET] = 100_000
    load()
    assert len(hub.ranges) == 1
    name, begin = hub.ranges[0].split()
    assert name == UNET
    assert 0 < int(begin) <= 100_000
    assert (snapshot(tmp_path) / UNET).read_bytes() == hub.files[UNET]


def test_a_download_that_broke_off_goes_on_with_the_missing_files(
    hub: FakeHub, load: Load, tiny_pipeline_folder: Path
) -> None:
    hub.broken.add(UNET)
    assert "ModelError" in load()["answer"]
    before = set(hub.served)
    assert len(before) > 5
    hub.broken.clear()
    hub.served.clear()
    assert load()["answer"] == fingerprint(tiny_pipeline_folder / "unet")
    assert UNET in hub.served
    assert not before & set(hub.served)


@pytest.mark.parametrize("token", ["", "hf_bad"])
def test_a_gated_model_without_access_is_one_sentence(hub: FakeHub, load: Load, token: str) -> None:
    hub.gated = True
    answer = load(token=token)["answer"]
    assert "owner/tiny asks for its licence to be accepted" in answer
    assert "hf auth login" in answer
    assert "GB of owner/tiny, licence: openrail++" in load(token=token)["log"]


def test_a_token_opens_a_gated_model(hub: FakeHub, load: Load, tiny_pipeline_folder: Path) -> None:
    hub.gated = True
    assert load(token="hf_good")["answer"] == fingerprint(tiny_pipeline_folder / "unet")


def test_no_network_is_one_sentence(load: Load) -> None:
    answer = load(ENDPOINT="http://127.0.0.1:9")["answer"]
    assert "owner/tiny is not in the local Hugging Face cache and http://127.0.0.1:9 cannot be reached" in answer
    assert "HF_HUB_OFFLINE is set" in load(HF_HUB_OFFLINE=True)["answer"]


def test_a_hub_in_trouble_is_one_sentence(hub: FakeHub, load: Load) -> None:
    hub.down = True
    assert "owner/tiny could not be downloaded (" in load()["answer"]


def test_a_model_that_is_not_there(load: Load) -> None:
    assert "the Hub has no model nobody/nothing, or it is private" in load("nobody/nothing")["answer"]


def test_the_command_line_reads_the_environment(hub: FakeHub, tmp_path: Path) -> None:
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    own = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.endpoint, "SDVQ_DATA": str(tmp_path / "data")}

    def models(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "sdvq_core", "models", "owner/tiny", *words]
        return subprocess.run(command, env=keep | own, capture_output=True, text=True, check=False)

    (info,) = json.loads(models("--json").stdout)["models"]
    assert (info["licence"], info["at_hand"]) == ("openrail++", False)
    assert "needs a download of 0.0 GB from owner/tiny" in info["note"]
    assert not hub.served
    hub.files = {name: data for name, data in hub.files.items() if not name.endswith(".safetensors")}
    done = models()
    assert done.returncode == 2
    assert "holds only a pickle (unet/diffusion_pytorch_model.bin)" in done.stderr


@pytest.mark.parametrize(
    ("names", "sentence"),
    [(["x.safetensors"], "has no model_index.json"), (["model_index.json", "unet/config.json"], "holds no weights")],
)
def test_a_repository_without_a_pipeline_is_refused(names: list[str], sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        needed(names, "owner/name")


def test_shards_and_their_index_are_needed() -> None:
    unet = [f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    unet += ["unet/diffusion_pytorch_model.safetensors.index.json"]
    fp16 = [f"unet/diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    fp16 += ["unet/diffusion_pytorch_model.safetensors.index.fp16.json"]
    text = ["text_encoder/model.safetensors", "text_encoder/model.fp16.safetensors"]
    assert set(needed(["model_index.json", *unet, *text], "x")) == {"model_index.json", *unet, text[0]}
    assert set(needed(["model_index.json", *unet, *fp16, *text], "x")) == {"model_index.json", *fp16, text[1]}


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ({}, ""),
        ({"license": "mit"}, "mit"),
        ({"license": "other"}, "other"),
        ({"license": "other", "license_name": "sai-nc", "license_link": "LICENSE.md"}, "sai-nc LICENSE.md"),
    ],
)
def test_licences_in_words(card: dict[str, str], words: str) -> None:
    assert licence_words(card) == words


def test_a_folder_without_card_has_no_known_licence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert cached_licence(tmp_path) == ""
    assert not caplog.records
