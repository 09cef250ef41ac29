"""Artifacts: identity, sizes to the byte, whole or absent, and one sentence for everything that is not sound."""

import json
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from core_cases import NAMES, file_digest, quantizer, run_unet, tiny_artifact, tiny_unet
from hypothesis import given, settings
from hypothesis import strategies as st

from sdvq_core.errors import StoreError
from sdvq_core.integrations.loading import build_unet, load_artifact
from sdvq_core.plan import vqdm_rules
from sdvq_core.store import (
    ModelStore,
    blank_metadata,
    copy_artifact,
    is_artifact,
    open_artifact,
    read_artifact,
    read_report,
    write_artifact,
)
from sdvq_core.store.artifact import CONFIG_NAME, WEIGHTS_NAME, _install, remove_folder

CONFIG = "config.json"


def cheap(name: str):
    small = {"kmeans": {"code_bits": 5}, "rvq": {"codebooks": 2, "code_bits": 4, "beam": 2}}
    return quantizer(name, **small.get(name, {}))


@pytest.fixture(scope="module")
def unet():
    return tiny_unet()


@pytest.fixture(scope="module")
def artifact(unet):
    """Shared and private codebooks, scalar and vector layers in one."""
    from sdvq_core import Rule

    rules = [*vqdm_rules(cheap("rvq")), Rule("*.attn2.*", cheap("rtn")), Rule("mid_block*", quantizer("nf4"))]
    return tiny_artifact(rules, unet)[0]


@pytest.fixture(scope="module")
def saved(artifact, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "saved"
    write_artifact(folder, artifact)
    return folder


@pytest.fixture
def copied(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def edit(folder: Path, change) -> None:
    config = json.loads((folder / CONFIG).read_text())
    change(config["quantization_config"])
    (folder / CONFIG).write_text(json.dumps(config))


def test_save_then_load_is_identity(artifact, saved):
    again = read_artifact(saved)
    assert again.manifest == artifact.manifest
    assert again.records == tuple(
        replace(r, bits_per_weight=round(r.bits_per_weight, 4), relative_mse=float(f"{r.relative_mse:.5e}"))
        for r in artifact.records
    )
    assert again.versions == artifact.versions
    assert set(again.weights) == set(artifact.weights)
    for name, weight in artifact.weights.items():
        assert all(torch.equal(again.weights[name].tensors[key], weight.tensors[key]) for key in weight.tensors)
        assert torch.equal(again.weights[name].dequantize(), weight.dequantize())
    assert all(torch.equal(again.kept[name], value) for name, value in artifact.kept.items())
    assert torch.equal(run_unet(load_artifact(saved)), run_unet(build_unet(artifact)))


def test_the_same_artifact_is_the_same_bytes(artifact, saved, tmp_path):
    write_artifact(tmp_path / "again", artifact)
    assert file_digest(tmp_path / "again") == file_digest(saved)
    write_artifact(tmp_path / "third", read_artifact(saved))
    assert (tmp_path / "third" / WEIGHTS_NAME).read_bytes() == (saved / WEIGHTS_NAME).read_bytes()


@pytest.mark.parametrize("share", ["auto", "layer"])
@pytest.mark.parametrize("name", NAMES)
def test_the_ledger_is_the_file_to_the_byte(name, share, unet, tmp_path):
    found = cheap(name)
    if share == "layer":
        if name not in ("kmeans", "rvq"):
            pytest.skip("has no codebooks of its own")
        found = replace(found, share="layer")
    artifact, plan = tiny_artifact(found, unet)
    write_artifact(tmp_path / "a", artifact)
    expected = plan.ledger(blank_metadata(len(plan.assignments)))
    assert read_report(tmp_path / "a").ledger == expected
    size = (tmp_path / "a" / WEIGHTS_NAME).stat().st_size
    assert expected.file_bytes == size
    header, _ = header_of(tmp_path / "a" / WEIGHTS_NAME)
    assert expected.tensor_bytes == size - 8 - header
    assert expected.weights == sum(p.numel() for p in unet.parameters())


def test_the_report_card(artifact, saved):
    report = read_report(saved)
    assert report.base == artifact.manifest.base
    assert report.layers == read_artifact(saved).records
    assert {layer.kind for layer in report.layers} == {"linear", "conv2d"}
    json.dumps(report.to_json(), allow_nan=False)


def test_writing_replaces_an_artifact_and_nothing_else(artifact, copied, tmp_path):
    (copied / "note.txt").write_text("old")
    write_artifact(copied, artifact)
    assert sorted(path.name for path in copied.iterdir()) == [CONFIG, WEIGHTS_NAME]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"], "nothing is left behind"
    (tmp_path / "empty").mkdir()
    write_artifact(tmp_path / "empty", artifact)
    assert is_artifact(tmp_path / "empty")
    for target in (tmp_path / "mine", tmp_path / "file"):
        target.mkdir() if target.name == "mine" else target.write_text("x")
        if target.is_dir():
            (target / "thesis.txt").write_text("precious")
        with pytest.raises(StoreError, match="is not an SDVQ artifact; name a new or empty folder"):
            write_artifact(target, artifact)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_a_folder_that_cannot_be_written_is_one_sentence(artifact, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot be written to"):
        write_artifact(tmp_path / "file" / "below", artifact)


@pytest.mark.parametrize("fails", ["write_tensors", "flush", "_install"])
def test_a_writer_that_fails_leaves_nothing(artifact, tmp_path, monkeypatch, fails):
    def broken(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"sdvq_core.store.artifact.{fails}", broken)
    with pytest.raises(StoreError, match="No space left on device"):
        write_artifact(tmp_path / "a", artifact)
    assert not list(tmp_path.iterdir())


def test_a_copy_is_the_artifact_byte_for_byte_and_of_a_sound_one_alone(artifact, tmp_path):
    write_artifact(tmp_path / "a", artifact)
    copy_artifact(tmp_path / "a", tmp_path / "b")
    for name in (WEIGHTS_NAME, CONFIG_NAME):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    raw = bytearray((tmp_path / "a" / WEIGHTS_NAME).read_bytes())
    raw[-1] ^= 1
    (tmp_path / "a" / WEIGHTS_NAME).write_bytes(bytes(raw))
    with pytest.raises(StoreError, match="does not match its SHA-256; compress the model again"):
        copy_artifact(tmp_path / "a", tmp_path / "c")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "other.txt").touch()
    with pytest.raises(StoreError, match="is not an SDVQ artifact; name a new or empty folder"):
        copy_artifact(tmp_path / "b", tmp_path / "d")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "d"]


def test_what_is_read_tensor_by_tensor_is_what_is_read_at_once(saved, copied):
    whole = read_artifact(saved)
    with open_artifact(copied) as found:
        assert (found.manifest, found.records, found.versions) == (whole.manifest, whole.records, whole.versions)
        assert set(found.weights) == set(whole.weights)
        assert set(found.kept) == set(whole.kept)
        for name, weight in whole.weights.items():
            again = found.weights[name]
            assert (again.format, again.shape, again.meta) == (weight.format, weight.shape, weight.meta)
            assert all(torch.equal(again.tensors[key], value) for key, value in weight.tensors.items())
        assert all(torch.equal(found.kept[name], tensor) for name, tensor in whole.kept.items())
        with pytest.raises(KeyError):
            found.kept["conv_in"]
        (copied / WEIGHTS_NAME).write_bytes((copied / WEIGHTS_NAME).read_bytes()[:-1000])
        with pytest.raises(StoreError, match=r"ends in the middle of .*: it was changed while it was read"):
            [found.weights[name] for name in found.weights] + [found.kept[name] for name in found.kept]


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from sdvq_core.store import read_artifact, write_artifact
    from sdvq_core.store import artifact as room
    old, new, at = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    value = read_artifact(old)
    count = 0
    def hook(event, args):
        global count
        if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir") and str(new.parent) in str(args[0]):
            count += 1
            if count == int(at):
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    write_artifact(new, value)
"""


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("before", ["absent", "present"])
def test_a_killed_writer_leaves_all_or_nothing(saved, tmp_path, before):
    """SIGKILL at the first, second … file operation until one run gets through."""
    target = tmp_path / "room" / "new"
    for step in range(1, 40):
        shutil.rmtree(tmp_path / "room", ignore_errors=True)
        (tmp_path / "room").mkdir()
        if before == "present":
            shutil.copytree(saved, target)
        done = run_python(KILLED, saved, target, step)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        if target.exists():
            read_artifact(target)
        else:
            assert ModelStore(tmp_path / "room").get("new") is None
        write_artifact(target, read_artifact(saved))
        if done.returncode == 0:
            break
    assert done.returncode == 0
    assert step > 4


WRITER = """
    import sys
    from pathlib import Path
    from sdvq_core.store import ModelStore, read_artifact
    value, store = read_artifact(Path(sys.argv[1])), ModelStore(Path(sys.argv[2]))
    for turn in range(8):
        read_artifact(store.put("key", value))
        if turn % 4 == 3:
            store.drop("other")
"""


def test_two_processes_that_store_the_same_thing_both_end_valid(saved, tmp_path):
    code = textwrap.dedent(WRITER)
    command = [sys.executable, "-c", code, str(saved), str(tmp_path / "store")]
    jobs = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for job in jobs:
        _, messages = job.communicate(timeout=120)
        assert job.returncode == 0, messages
    read_artifact(tmp_path / "store" / "key")
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["key"]


def test_the_first_writer_of_a_key_wins_and_the_last_one_of_a_folder(artifact, copied, tmp_path):
    for name, replaces in (("first", False), ("second", True)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mark").write_text(name)
        _install(tmp_path / name, copied, replaces)
        assert (copied / "mark").exists() == replaces
    remove_folder(tmp_path / "gone")


def test_the_cache(artifact, tmp_path, monkeypatch):
    store = ModelStore(tmp_path / "deep" / "store")
    key = store.key("recipe", "base")
    assert key != store.key("recipe", "other")
    assert key != store.key("other", "base")
    assert store.key("ab", "c") != store.key("a", "bc")
    assert store.get(key) is None
    folder = store.put(key, artifact)
    assert store.get(key) == folder
    (folder / CONFIG).write_text("{")
    assert store.get(key) is None
    assert not folder.exists()
    assert store.get(store.put(key, artifact).name) == folder
    for name in (".key.1.tmp", ".key.2.old"):
        (store.root / name).mkdir()
    store.put("fresh", artifact)
    assert len(list(store.root.glob(".*"))) == 2, "another writer may be at work"
    monkeypatch.setattr("sdvq_core.store.cache._STALE_SECONDS", -1)
    store.put("third", artifact)
    assert not list(store.root.glob(".*"))
    store.drop(key)
    assert store.get(key) is None


def refused(folder: Path, match: str = ".") -> str:
    with pytest.raises(StoreError, match=match) as caught:
        load_artifact(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_pieces(copied, tmp_path):
    refused(tmp_path / "nowhere", "is not an SDVQ artifact")
    refused(tmp_path, "is not an SDVQ artifact")
    with pytest.raises(StoreError, match=r"it has no config.json; pass a folder made by `compress`"):
        read_report(tmp_path)
    (copied / WEIGHTS_NAME).unlink()
    refused(copied, "has no diffusion_pytorch_model.safetensors")
    with pytest.raises(StoreError, match=r"has no diffusion_pytorch_model\.safetensors"):
        read_report(copied)


@pytest.mark.parametrize("keep", [0, 4, 8, 1000, 20_000, -1])
def test_a_truncated_file(copied, keep):
    data = (copied / WEIGHTS_NAME).read_bytes()
    (copied / WEIGHTS_NAME).write_bytes(data[:keep])
    refused(copied, "truncated or damaged")
    with pytest.raises(StoreError, match="truncated or damaged"):
        read_report(copied)


def test_a_longer_file(copied):
    with (copied / WEIGHTS_NAME).open("ab") as file:
        file.write(b"\0" * 8)
    refused(copied, "damaged")


def test_a_file_that_is_no_safetensors(copied):
    (copied / WEIGHTS_NAME).write_bytes(b"PK\x03\x04" + b"pickle" * 1000)
    refused(copied, "damaged")


def test_foreign_and_newer(copied):
    edit(copied, lambda entry: entry.update(quant_method="bitsandbytes"))
    with pytest.raises(StoreError, match="was quantized by 'bitsandbytes'; SDVQ reads its own artifacts only"):
        read_report(copied)
    edit(copied, lambda entry: entry.update(quant_method="sdvq", format_version=2))
    refused(copied, "format version 2, this program reads up to 1; update SDVQ")
    edit(copied, lambda entry: entry.update(format_version="new"))
    refused(copied, "format version new")


def test_configs_that_make_no_sense(copied):
    for text in ("", "{", "[]", "null", '{"quantization_config": 3}', "\ufeff{}"):
        (copied / CONFIG).write_text(text)
        refused(copied)
        with pytest.raises(StoreError):
            read_report(copied)
    (copied / CONFIG).write_bytes(b"\xff\xfe\x00")
    refused(copied)


@pytest.mark.parametrize("key", ["base", "recipe", "layers", "fallbacks", "sha256", "layers_sha256"])
def test_a_manifest_with_a_hole(copied, key):
    edit(copied, lambda entry: entry.pop(key))
    refused(copied, "quantization_config is damaged")


@pytest.mark.parametrize(
    "change", [{"group_size": 32}, {"bits": 2}, {"code_bits": 8}, {"shared": "nf4"}], ids=lambda item: next(iter(item))
)
def test_an_edited_layer_table_is_refused(copied, change):
    edit(copied, lambda entry: next(iter(entry["layers"].values()))["meta"].update(change))
    refused(copied, "layer table does not match its SHA-256")


FORGED = [
    {"shape": [32]},
    {"shape": [32, 0]},
    {"shape": ["a", "b"]},
    {"shape": [10**9, 10**9]},
    {"meta": {}},
    {"meta": {"bits": 4, "group_size": 0}},
    {"meta": {"bits": 99, "group_size": 64}},
    {"format": "codebook"},
    {"format": "trellis"},
]


@pytest.mark.parametrize("change", FORGED, ids=str)
def test_a_forged_layer_table_with_the_right_digest_is_refused(copied, change):
    from sdvq_core.store.manifest import _table_digest

    def forge(entry):
        layer = next(item for item in entry["layers"].values() if item["format"] == "affine")
        layer.update(change)
        entry["layers_sha256"] = _table_digest(entry["layers"])

    edit(copied, forge)
    refused(copied)
    with pytest.raises(StoreError):
        read_report(copied)


def header_of(path: Path) -> tuple[int, dict]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return length, json.loads(file.read(length))


def test_every_flipped_byte_of_the_tensors_is_noticed(copied):
    path = copied / WEIGHTS_NAME
    start, data = 8 + header_of(path)[0], path.read_bytes()
    for place in [start, len(data) - 1, *range(start, len(data), len(data) // 40)]:
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        refused(copied, "is damaged: its content does not match its SHA-256")


@pytest.fixture(scope="module")
def fuzzed(saved, tmp_path_factory) -> Path:
    return Path(shutil.copytree(saved, tmp_path_factory.mktemp("fuzz") / "a"))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damage_anywhere_is_an_error_or_harmless(saved, fuzzed, data):
    """Flips, cuts and swaps, anywhere in either file: a StoreError, or the very tensors that were stored."""
    name = data.draw(st.sampled_from([CONFIG, WEIGHTS_NAME]))
    good = (saved / name).read_bytes()
    span = min(len(good), 60_000) if name == WEIGHTS_NAME else len(good)
    place = data.draw(st.integers(0, span - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "zero"]))
    tail = good[place + 1 :]
    damaged = {
        "flip": good[:place] + bytes([good[place] ^ (1 << data.draw(st.integers(0, 7)))]) + tail,
        "cut": good[:place],
        "insert": good[:place] + b"7" + good[place:],
        "zero": good[:place] + b"\0" + tail,
    }[kind]
    try:
        (fuzzed / name).write_bytes(damaged)
        try:
            found = read_artifact(fuzzed)
        except StoreError:
            return
        want = read_artifact(saved)
        assert set(found.weights) == set(want.weights)
        for layer, weight in want.weights.items():
            assert torch.equal(found.weights[layer].dequantize(), weight.dequantize())
        assert all(torch.equal(found.kept[key], value) for key, value in want.kept.items())
    finally:
        (fuzzed / name).write_bytes(good)


def resave(folder: Path, change) -> None:
    """Write the tensors again after `change`, with a digest that fits."""
    from safetensors.torch import load_file, save_file

    from sdvq_core.store.artifact import digest

    tensors = load_file(folder / WEIGHTS_NAME)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_NAME)
    edit(folder, lambda entry: entry.update(sha256=digest(tensors)))


def test_a_tensor_that_is_missing_is_named(copied):
    resave(copied, lambda tensors: tensors.pop("mid_block.resnets.0.conv1.codes"))
    refused(copied, r"lacks tensors .* such as mid_block.resnets.0.conv1.codes")
    with pytest.raises(StoreError, match=r"lacks tensors .* such as mid_block.resnets.0.conv1.codes"):
        read_report(copied)


def test_a_kept_tensor_that_is_missing_or_too_many(copied):
    resave(copied, lambda tensors: tensors.pop("conv_in.bias"))
    refused(copied, "conv_in.bias is missing or not expected")
    resave(copied, lambda tensors: tensors.update({"conv_in.bias": torch.zeros(16).half(), "extra": torch.zeros(1)}))
    refused(copied, "extra is missing or not expected")


def test_a_tensor_of_another_shape(copied):
    name = "mid_block.resnets.0.conv1.scale"
    resave(copied, lambda tensors: tensors.update({name: tensors[name][:-1].contiguous()}))
    refused(copied, r"conv1.scale as torch.float16 \[31, 5\], its config says torch.float16 \[32, 5\]")
    resave(copied, lambda tensors: tensors.update({name: torch.zeros(1).half()}))
    refused(copied, r"conv1.scale as torch.float16 \[1\], its config says")
    with pytest.raises(StoreError, match="its config says"), open_artifact(copied):
        pass


def test_a_kept_tensor_of_another_shape(copied):
    resave(copied, lambda tensors: tensors.update({"conv_in.bias": torch.zeros(7).half()}))
    refused(copied, "conv_in.bias")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_mapping_of_the_file_is_kept(copied):
    value = read_artifact(copied)
    assert str(copied) not in Path("/proc/self/maps").read_text()
    (copied / WEIGHTS_NAME).write_bytes(b"")
    assert all(torch.isfinite(weight.dequantize()).all() for weight in value.weights.values())
