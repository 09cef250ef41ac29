"""Plain diffusers reads artifacts after `import sdvq_core`, in either order of imports, and writes them again."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from core_cases import quantizer, run_unet, tiny_artifact, tiny_unet

from sdvq_core import Rule
from sdvq_core.errors import StoreError
from sdvq_core.integrations import install
from sdvq_core.integrations.loading import load_artifact
from sdvq_core.nn import quantized_layers
from sdvq_core.plan import vqdm_rules
from sdvq_core.store import read_artifact, read_report, write_artifact

RULES = [*vqdm_rules(quantizer("rvq", codebooks=2, code_bits=4, beam=2)), Rule("*.attn2.*", quantizer("rtn", 3))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "a"
    write_artifact(path, tiny_artifact(RULES)[0])
    return path


def from_pretrained(path: Path, **options):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(path, **options).eval()


FRESH = """
    import sys
    sys.path.insert(0, {tests!r})
    {first}
    {second}
    import torch
    from diffusers import UNet2DConditionModel
    from core_cases import run_unet
    unet = UNet2DConditionModel.from_pretrained(sys.argv[1]).eval()
    torch.save(run_unet(unet), sys.argv[2])
"""


@pytest.mark.parametrize("first", ["sdvq_core", pytest.param("diffusers", marks=pytest.mark.slow)])
def test_a_fresh_python_draws_the_same(folder, tmp_path, first):
    second = "diffusers" if first == "sdvq_core" else "sdvq_core"
    code = textwrap.dedent(FRESH).format(
        tests=str(Path(__file__).parents[1]), first=f"import {first}", second=f"import {second}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(tmp_path / "out.pt")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "out.pt", weights_only=True), run_unet(load_artifact(folder)))


def test_from_pretrained_and_load_artifact_hold_the_same(folder):
    ours, theirs = load_artifact(folder), from_pretrained(folder)
    assert torch.equal(run_unet(ours), run_unet(theirs))
    assert [name for name, _ in quantized_layers(ours)] == [name for name, _ in quantized_layers(theirs)]
    state = theirs.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())
    assert not any(parameter.requires_grad for name, parameter in ours.named_parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_any_dtype_is_computed_with_and_none_is_stored(folder, dtype):
    ours, theirs = load_artifact(folder, dtype=dtype), from_pretrained(folder, torch_dtype=dtype)
    assert theirs.conv_in.weight.dtype == dtype
    assert {value.dtype for value in theirs.buffers()} <= {torch.uint8, torch.float16}
    assert torch.equal(run_unet(ours, dtype), run_unet(theirs, dtype))


def test_saved_again_it_is_the_artifact_again(folder, tmp_path):
    from_pretrained(folder).save_pretrained(tmp_path / "again")
    before, after = read_artifact(folder), read_artifact(tmp_path / "again")
    assert after.manifest == before.manifest
    assert torch.equal(run_unet(load_artifact(tmp_path / "again")), run_unet(load_artifact(folder)))
    assert read_report(tmp_path / "again").ledger.parts == read_report(folder).ledger.parts
    assert torch.equal(run_unet(from_pretrained(tmp_path / "again")), run_unet(load_artifact(folder)))


def test_streaming_draws_the_same(folder):
    assert torch.equal(run_unet(load_artifact(folder, mode="streaming")), run_unet(load_artifact(folder)))


def test_a_half_empty_artifact_is_refused_not_filled_with_noise(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    name = "diffusion_pytorch_model.safetensors"
    tensors = load_file(folder / name)
    del tensors["mid_block.resnets.0.conv1.codes"]
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file(tensors, tmp_path / name, {"format": "pt"})
    with pytest.raises(StoreError, match=r"lacks the tensor mid_block.resnets.0.conv1.codes"):
        from_pretrained(tmp_path)


def test_a_newer_artifact_is_refused_by_diffusers_too(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["format_version"] = 99
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(StoreError, match="reads up to 1; update SDVQ"):
        from_pretrained(tmp_path)


def test_installing_twice_changes_nothing():
    finders = list(sys.meta_path)
    install()
    install()
    assert sys.meta_path == finders


def test_what_is_loaded_can_be_looked_at(folder):
    unet = from_pretrained(folder)
    config = unet.config["quantization_config"]
    assert config.quant_method == "sdvq"
    assert '"layers"' not in repr(config)
    assert len(config.manifest.layers) == len(list(quantized_layers(unet)))
    assert tiny_unet().config.cross_attention_dim == unet.config.cross_attention_dim
