"""An artifact back to plain weights: exactly the decoded ones, in every layout, read by plain diffusers and by us."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdvq_core import Workbench, load_artifact
from sdvq_core.diffusion.base_model import load_base
from sdvq_core.diffusion.fingerprint import fingerprint
from sdvq_core.diffusion.folders import WEIGHTED, read_head
from sdvq_core.diffusion.quiet import quiet
from sdvq_core.diffusion.sources import find_source
from sdvq_core.errors import ConfigError, ModelError, SdvqError, StoreError
from sdvq_core.export import DTYPES, Exported, ExportJob, export, unet_part
from sdvq_core.jobs import Notice, Progress
from sdvq_core.store import read_artifact
from sdvq_core.store.tensor_file import TensorFile

ARM = "rvq:bits=3"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    list(Workbench(root / "data", "cpu").compress("nano", ARM, root / "artifact"))
    return root / "artifact"


@pytest.fixture(scope="module")
def decoded(artifact: Path) -> dict[str, Tensor]:
    """The UNet that the artifact stands for, in float16."""
    found = read_artifact(artifact)
    weights = {f"{name}.weight": weight.dequantize(torch.float16) for name, weight in found.weights.items()}
    return {**weights, **found.kept}


@pytest.fixture(scope="module")
def nano_file(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact with nano's other parts, as one file."""
    path = tmp_path_factory.mktemp("out") / "nano.safetensors"
    run(ExportJob(artifact, path, "nano"))
    return path


def run(job: ExportJob, data: Path | None = None) -> tuple[Exported, list[Any]]:
    *events, last = export(job, data)
    assert isinstance(last, Exported)
    return last, events


def equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def test_a_folder_is_a_plain_unet(artifact: Path, decoded: dict[str, Tensor], tmp_path: Path) -> None:
    done, events = run(ExportJob(artifact, tmp_path / "unet"))
    with quiet():
        unet = UNet2DConditionModel.from_pretrained(tmp_path / "unet", dtype=torch.float16)
    assert "quantization_config" not in unet.config
    equal(unet.state_dict(), decoded)
    assert [Path(name).name for name in done.files] == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert done.nbytes == sum(Path(name).stat().st_size for name in done.files)
    assert [event.done for event in events[1:]] == list(range(1, done.tensors + 1))
    assert all(isinstance(event, Progress) and event.total == done.tensors for event in events[1:])


def test_diffusers_needs_no_sdvq_for_it(artifact: Path, tmp_path: Path) -> None:
    run(ExportJob(artifact, tmp_path / "unet"))
    code = (
        "import sys, torch; from diffusers import UNet2DConditionModel\n"
        f"unet = UNet2DConditionModel.from_pretrained({str(tmp_path / 'unet')!r})\n"
        "assert not [name for name in sys.modules if name.startswith('sdvq')]\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, check=True, env=_without_path())


def _without_path() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_the_exported_unet_computes_what_the_artifact_computes(artifact: Path, tmp_path: Path) -> None:
    run(ExportJob(artifact, tmp_path / "unet", dtype="fp32"))
    plain, compressed = UNet2DConditionModel.from_pretrained(tmp_path / "unet"), load_artifact(artifact)
    config, seed = plain.config, torch.Generator().manual_seed(0)
    latents = torch.randn(1, config.in_channels, 16, 16, generator=seed)
    words = torch.randn(1, 7, config.cross_attention_dim, generator=seed)
    pooled = torch.randn(1, config.projection_class_embeddings_input_dim - 6 * 8, generator=seed)
    added = {"text_embeds": pooled, "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]])}
    with torch.no_grad():
        ours, theirs = (unet(latents, 500, words, added_cond_kwargs=added).sample for unet in (compressed, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_every_dtype_is_decoded_into(artifact: Path, tmp_path: Path, dtype: str) -> None:
    done, _ = run(ExportJob(artifact, tmp_path / "unet", dtype=dtype))
    found, stored = read_artifact(artifact), load_file(done.files[1])
    assert {tensor.dtype for tensor in stored.values()} == {DTYPES[dtype]}
    for name, weight in found.weights.items():
        assert torch.equal(stored[f"{name}.weight"], weight.dequantize(DTYPES[dtype]))


def test_a_unet_file_holds_the_unet_alone(artifact: Path, decoded: dict[str, Tensor], tmp_path: Path) -> None:
    done, _ = run(ExportJob(artifact, tmp_path / "unet.safetensors"))
    source = find_source(str(tmp_path / "unet.safetensors"))
    assert source.no_image == "it is a UNet without text encoders and VAE"
    run(ExportJob(artifact, tmp_path / "unet"))
    assert fingerprint(source) == fingerprint(tmp_path / "unet")
    names = load_file(tmp_path / "unet.safetensors")
    assert all(name.startswith("model.diffusion_model.") for name in names)
    assert (len(names), done.parts) == (len(decoded), ("unet",))


def test_a_whole_file_is_loaded_again(nano_file: Path, decoded: dict[str, Tensor]) -> None:
    base, nano = load_base(find_source(str(nano_file)), "cpu"), load_base(find_source("nano"), "cpu")
    equal(base.unet.state_dict(), {name: tensor.float() for name, tensor in decoded.items()})
    for part in set(WEIGHTED) - {"unet"}:
        equal(getattr(base.pipe, part).state_dict(), getattr(nano.pipe, part).state_dict())
    with safe_open(nano_file, "pt") as file:
        assert file.metadata()["sdvq"].startswith(f"{ARM} of nano (")
        assert file.metadata()["modelspec.prediction_type"] == "v"
        assert file.get_tensor("v_pred").numel() == 0


def test_a_base_of_one_file_keeps_what_else_it_holds(artifact: Path, nano_file: Path, tmp_path: Path) -> None:
    tensors = load_file(nano_file) | {"conditioner.embedders.1.model.logit_scale": torch.tensor(4.6)}
    tensors["model_ema.num_updates"] = torch.tensor(7)
    metadata = {"modelspec.title": "Mine", "modelspec.hash_sha256": "0x1"}
    save_file(tensors, tmp_path / "base.safetensors", metadata)
    done, events = run(ExportJob(artifact, tmp_path / "x.safetensors", str(tmp_path / "base.safetensors")), tmp_path)
    assert set(done.parts) == set(WEIGHTED)
    found = load_file(tmp_path / "x.safetensors")
    scale = tensors["conditioner.embedders.1.model.logit_scale"].half()
    equal(found, tensors | {"conditioner.embedders.1.model.logit_scale": scale})
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata()["modelspec.title"] == "Mine"
        assert not [key for key in file.metadata() if "hash" in key]
    (notice,) = [event.text for event in events if isinstance(event, Notice)]
    assert "is not the one that the artifact was made from (nano" in notice


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_base_gives_a_whole_pipeline_folder(
    artifact: Path, nano_file: Path, decoded: dict[str, Tensor], kind: str, tmp_path: Path
) -> None:
    done, events = run(ExportJob(artifact, tmp_path / "pipe", "nano" if kind == "folder" else str(nano_file)))
    assert (kind == "file") == any(isinstance(event, Notice) for event in events)
    with quiet():
        pipe = StableDiffusionXLPipeline.from_pretrained(tmp_path / "pipe", dtype=torch.float16)
        nano = StableDiffusionXLPipeline.from_pretrained(find_source("nano").location, dtype=torch.float16)
    equal(pipe.unet.state_dict(), decoded)
    for part in set(WEIGHTED) - {"unet"}:
        equal(getattr(pipe, part).state_dict(), getattr(nano, part).state_dict())
    assert pipe.scheduler.config == nano.scheduler.config
    assert pipe.tokenizer_2("a red apple").input_ids == nano.tokenizer_2("a red apple").input_ids
    assert find_source(str(tmp_path / "pipe")).no_image == ""
    assert done.tensors == sum(len(getattr(pipe, part).state_dict()) for part in WEIGHTED)


def test_turbos_scheduler_is_told(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_pipeline_folder, tmp_path / "base"))
    path = base / "scheduler" / "scheduler_config.json"
    changes = {"_class_name": "EulerAncestralDiscreteScheduler", "rescale_betas_zero_snr": True}
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    list(Workbench(tmp_path / "data", "cpu").compress(str(base), "rtn", tmp_path / "artifact"))
    _, events = run(ExportJob(tmp_path / "artifact", tmp_path / "x.safetensors", str(base)))
    assert not [event for event in events if isinstance(event, Notice)]
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata()["modelspec.title"] == "SDXL-Turbo"
        assert "ztsnr" in file.keys()  # noqa: SIM118 - not a dict


def test_what_is_there_already_is_kept(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"mine")
    for out in (tmp_path / "x.safetensors", tmp_path):
        with pytest.raises(StoreError, match="exists; name a new file"):
            ExportJob(artifact, out)
    (tmp_path / "empty").mkdir()
    run(ExportJob(artifact, tmp_path / "empty"))
    assert (tmp_path / "x.safetensors").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["unet", "unet.safetensors"])
def test_an_export_that_is_stopped_leaves_nothing(artifact: Path, tmp_path: Path, name: str) -> None:
    steps = export(ExportJob(artifact, tmp_path / name))
    for _ in range(20):
        next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert not list(tmp_path.iterdir())


def test_the_bytes_are_those_of_all_tensors_at_once(
    artifact: Path, decoded: dict[str, Tensor], nano_file: Path, tmp_path: Path
) -> None:
    """A folder is what safetensors writes of the decoded tensors, a file holds them under its own names."""
    run(ExportJob(artifact, tmp_path / "unet"))
    save_file({name: tensor.contiguous() for name, tensor in decoded.items()}, tmp_path / "whole", {"format": "pt"})
    assert (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == (tmp_path / "whole").read_bytes()
    with safe_open(nano_file, "pt") as file:
        save_file(load_file(nano_file), tmp_path / "again", file.metadata())
    assert read_head(tmp_path / "again") == read_head(nano_file)
    assert len((tmp_path / "again").read_bytes()) == nano_file.stat().st_size


@pytest.mark.parametrize("name", ["unet", "unet.safetensors"])
def test_one_layer_is_in_memory(artifact: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own, alive = TensorFile.__getitem__, weakref.WeakSet[Tensor]()
    whole = read_artifact(artifact)
    largest = max(sum(tensor.nbytes for tensor in weight.tensors.values()) for weight in whole.weights.values())
    largest = max(largest, *(tensor.nbytes for tensor in whole.kept.values()))
    seen = []

    def watched(file: TensorFile, stored: str) -> Tensor:
        tensor = own(file, stored)
        alive.add(tensor)
        seen.append(sum(other.nbytes for other in alive))
        return tensor

    monkeypatch.setattr(TensorFile, "__getitem__", watched)
    run(ExportJob(artifact, tmp_path / name))
    assert len(seen) > len(whole.weights)
    assert 0 < max(seen) <= largest < sum(tensor.nbytes for tensor in whole.kept.values())


@pytest.mark.parametrize("name", ["unet", "unet.safetensors"])
def test_a_full_disk_leaves_nothing(artifact: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own, written = os.write, []

    def full(descriptor: int, data: memoryview) -> int:
        written.append(len(data))
        if sum(written) > 500_000:
            raise OSError(28, "No space left on device")
        return own(descriptor, data)

    monkeypatch.setattr("sdvq_core.store.tensor_file.os.write", full)
    assert "No space left on device" in refused(StoreError, lambda: run(ExportJob(artifact, tmp_path / name)))
    assert len(written) > 5
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["unet", "unet.safetensors"])
def test_a_killed_export_leaves_nothing_under_its_name(artifact: Path, tmp_path: Path, name: str) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from sdvq_core.export import ExportJob, export\n"
        "for number, _ in enumerate(export(ExportJob(Path(sys.argv[1]), Path(sys.argv[2])))):\n"
        "    if number == 30: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", code, str(artifact), str(tmp_path / name)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -signal.SIGKILL
    assert [path.name[:6] for path in tmp_path.iterdir()] == [".unet."]
    run(ExportJob(artifact, tmp_path / name))


def refused(kind: type[SdvqError], make: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught:
        make()
    return str(caught.value)


def test_mistakes_are_named(artifact: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "fp16, bf16, fp32, got 'fp8'" in refused(ConfigError, lambda: ExportJob(artifact, out, dtype="fp8"))
    unet = str(Path(find_source("nano").location) / "unet")
    assert "name a whole model" in refused(ModelError, lambda: run(ExportJob(artifact, out, unet)))
    assert "is not an artifact" in refused(StoreError, lambda: run(ExportJob(tmp_path, out)))
    assert "names no model" in refused(ModelError, lambda: run(ExportJob(artifact, out, "nanoo")))
    assert not out.exists()


def test_an_artifact_without_a_tensor_is_refused(artifact: Path) -> None:
    found = read_artifact(artifact)
    found.kept.pop("conv_in.bias")  # type: ignore[attr-defined]
    with pytest.raises(StoreError, match=r"conv_in.bias is missing or not expected"):
        unet_part(found, torch.float16)


def test_the_command(artifact: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sdvq_core", "export", str(artifact), "--out", str(tmp_path / "x.safetensors")]
    environment = {**os.environ, "SDVQ_DATA": str(tmp_path / "data"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*command, "--json"], env=environment, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert answer["files"] == [str(tmp_path / "x.safetensors")]
    assert (answer["dtype"], answer["parts"], answer["recipe"]) == ("fp16", ["unet"], ARM)
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "exists; name a new file" in again.stderr.splitlines()[-1]
