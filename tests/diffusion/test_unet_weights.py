"""Weights read one at a time are the loaded model's own, from any layout of files, without a mapping that stays."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdvq_core.diffusion.base_model import unet_weights
from sdvq_core.diffusion.sources import find_source
from sdvq_core.diffusion.weights import UnetWeights
from sdvq_core.errors import ModelError


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two files with tensors of every dtype that is read, a scalar and an empty one among them."""
    torch.manual_seed(0)
    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    first = {f"a.{n}": torch.randn(3, 5, n + 1).to(dtype) for n, dtype in enumerate(dtypes)}
    save_file(first, tmp_path / "one.safetensors", {"format": "pt"})
    save_file(
        {"b": torch.tensor(2.0), "e": torch.empty(0, 3), "c": torch.arange(4, dtype=torch.uint8)},
        tmp_path / "two.safetensors",
    )
    return [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]


def test_every_tensor_comes_as_it_was_stored(files):
    found, wanted = UnetWeights(files), load_file(files[0]) | load_file(files[1])
    assert set(found) == set(wanted)
    assert len(found) == len(wanted)
    for name in set(wanted) - {"c"}:
        assert found[name].dtype == wanted[name].dtype
        assert torch.equal(found[name], wanted[name])
        assert found.shape(name) == tuple(wanted[name].shape)


def test_another_process_may_read_them(files):
    again = pickle.loads(pickle.dumps(UnetWeights(files)))
    assert torch.equal(again["a.2"], load_file(files[0])["a.2"])


def test_a_tensor_is_its_own_and_no_file_stays_mapped(files):
    found = UnetWeights(files)
    tensor, before = found["a.0"], found["a.0"].clone()
    tensor.zero_()
    assert torch.equal(found["a.0"], before)
    mapped = Path("/proc/self/maps")
    if mapped.exists():
        assert "one.safetensors" not in mapped.read_text()


def test_integers_and_files_that_became_shorter_are_named(files):
    found = UnetWeights(files)
    with pytest.raises(ModelError, match=r"c in .*two.safetensors is U8; SDVQ reads F16, BF16, F32, F64"):
        found["c"]
    files[0].write_bytes(files[0].read_bytes()[:-8])
    with pytest.raises(ModelError, match=r"one.safetensors ends in the middle of a\."):
        [found[name] for name in sorted(found)]
    files[0].unlink()
    with pytest.raises(ModelError, match=r"one.safetensors cannot be read \(No such file"):
        found["a.1"]


def test_they_are_the_weights_of_the_loaded_model(tiny_pipeline_folder, tiny_base):
    found, loaded = unet_weights(find_source(str(tiny_pipeline_folder))), tiny_base.unet.state_dict()
    assert set(found) == set(loaded)
    assert all(torch.equal(found[name].float(), loaded[name]) for name in loaded)
