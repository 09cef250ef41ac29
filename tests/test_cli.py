"""The command line of the contract: exact JSON on stdout, one line and exit code 2 for every mistake."""

import json
import shutil
import sys
from pathlib import Path
from unittest.mock import ANY

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdvq_core.cli import main
from sdvq_core.peers.base import Peer

ARM = "rvq:bits=2,code_bits=4,beam=2"
WEIGHTS = "diffusion_pytorch_model.safetensors"
LEDGER = {"weights", "weights_quantized", "tensor_bytes", "file_bytes", "fp16_bytes", "ratio", "bits_per_weight"}
LEDGER |= {"bits_per_quantized_weight", "parts", "fallbacks"}
LAYER = {"name", "kind", "shape", "quantizer", "bits_per_weight", "nbytes", "relative_mse", "relative_output_mse"}
MEASURES = {"latent_mse", "psnr", "ssim", "lpips", "alignment"}


@pytest.fixture(scope="module")
def shared_data(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def run(monkeypatch, capsys, shared_data):
    """Call the program in this process: (exit code, stdout, stderr)."""
    monkeypatch.setenv("SDVQ_DATA", str(shared_data))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "error" if name.endswith("VERBOSITY") else "1")

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sdvq", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return call


@pytest.fixture
def answer(run):
    """The JSON object of a command that succeeds."""

    def call(*words: object) -> dict:
        code, out, err = run(*words, "--json")
        assert code == 0, err
        assert out.count("\n") == 1, "one object, one line"
        return json.loads(out, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))

    return call


@pytest.fixture
def refused(run):
    """The one line of a command that fails; nothing on stdout."""

    def call(*words: object) -> str:
        code, out, err = run(*words)
        assert code == 2, (code, out, err)
        assert out == ""
        last = err.strip().splitlines()[-1]
        assert last.startswith("error: ")
        assert err.count("error:") == 1
        assert "Traceback" not in err
        return last

    return call


@pytest.fixture(scope="module")
def model(tiny_pipeline_folder) -> str:
    return str(tiny_pipeline_folder)


@pytest.fixture(scope="module")
def artifact(model, tmp_path_factory) -> Path:
    from sdvq_core import Workbench

    root = tmp_path_factory.mktemp("made")
    list(Workbench(root / "data", "cpu").compress(model, ARM, root / "out"))
    return root / "out"


def test_models(answer):
    found = answer("models")["models"]
    assert [item["name"] for item in found] == ["nano", "sdxl", "sdxl-turbo"]
    assert {"name", "label", "tier", "at_hand", "note", "steps", "guidance", "resolution", "licence"} == set(found[0])
    assert found[0]["licence"] == "mit"
    (nano,) = answer("models", "nano")["models"]
    assert nano == {**found[0], "note": nano["note"]}


def test_quantizers(answer, run):
    listed = answer("quantizers")
    found = {item["name"]: item for item in listed["quantizers"]}
    assert set(found) >= {"rtn", "nf4", "kmeans", "rvq"}
    for item in found.values():
        assert {"name", "label", "summary", "knobs", "bit_widths"} == set(item)
        for knob in item["knobs"]:
            assert {"name", "label", "default", "choices", "low", "high"} == set(knob)
    assert "bits: 2, 3, 4, 5, 6, 7, 8" in run("quantizers")[1]
    peers = {item["name"]: item for item in listed["peers"]}
    assert set(peers) == {"lib.bitsandbytes", "lib.gguf", "lib.hqq", "lib.quanto", "lib.sdnq"}
    assert set(peers["lib.hqq"]) == {"name", "label", "summary", "knobs", "bit_widths", "installed", "needs"}
    assert {item["name"] for item in peers["lib.hqq"]["knobs"]} == {"layers", "bits", "group_size"}


def test_a_missing_library_is_one_line(refused, model, monkeypatch):
    monkeypatch.setattr(Peer, "version", classmethod(lambda cls: None))
    line = refused("estimate", model, "lib.quanto:bits=4")
    assert line.endswith("needs optimum-quanto, which is not installed: pip install -r requirements-peers.txt")


@pytest.mark.parametrize("arm", ["fp16", "rtn", "@preview"])
def test_estimate(answer, model, arm):
    found = answer("estimate", model, arm)
    assert set(found) == {"arm", "exact", "ledger"}
    assert found["exact"]
    assert set(found["ledger"]) == LEDGER
    assert set(found["ledger"]["parts"]) == {"codes", "codebooks", "scales", "kept"}
    assert sum(found["ledger"]["parts"].values()) == found["ledger"]["tensor_bytes"]


def test_estimate_of_sdxl_needs_nothing(answer):
    ledger = answer("estimate", "sdxl", "rvq:bits=3")["ledger"]
    assert ledger["weights"] == 2_567_463_684
    assert 3.1 < ledger["bits_per_weight"] < 3.25


def test_compress_then_inspect(answer, run, model, tmp_path):
    out = tmp_path / "out"
    made = answer("compress", model, ARM, "--out", out)
    wanted = {"artifact", "base", "recipe", "ledger", "layers", "seconds", "versions", "curve", "kept"}
    assert set(made) == wanted
    assert {"conv_in", "conv_out", "time_embedding.linear_1"} <= set(made["kept"])
    assert not {layer["name"] for layer in made["layers"]} & set(made["kept"])
    assert set(made["base"]) == {"id", "fingerprint"}
    assert made["artifact"] == str(out)
    assert made["ledger"] == answer("estimate", model, ARM)["ledger"]
    assert made["ledger"]["file_bytes"] == (out / WEIGHTS).stat().st_size
    assert all(set(layer) == LAYER for layer in made["layers"])
    seen = answer("inspect", out)
    assert set(seen) == wanted
    assert {k: seen[k] for k in ("base", "ledger", "layers")} == {k: made[k] for k in ("base", "ledger", "layers")}
    code, text, _ = run("inspect", out)
    assert code == 0
    assert made["layers"][0]["name"] in text
    assert answer("estimate", model, out)["ledger"] == made["ledger"]
    again = answer("compress", model, ARM)
    assert Path(again["artifact"]).is_dir()


def test_generate(answer, model, tmp_path, artifact):
    from PIL import Image

    words = ("--prompt", "a red frog", "--steps", 2, "--seed", 7)
    found = answer("generate", model, *words, "--arm", artifact, "--out", tmp_path / "a.png")
    assert {"arm", "image", "seconds", "ledger"} <= set(found)
    assert found["mode"] == "resident"
    assert found["memory"]["weights"] > found["memory"]["decoded"] > 0
    assert found["image"] == str(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert (image.format, image.size) == ("PNG", (32, 32))
        assert image.info["prompt"] == "a red frog"
    answer("generate", model, *words, "--arm", artifact, "--out", tmp_path / "deep" / "b.PNG")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "deep" / "b.PNG").read_bytes()


def test_compare(answer, model, tmp_path, artifact):
    words = ("--arm", "fp16", "--arm", ARM, "--arm", artifact, "--prompt", "", "--steps", 2, "--out", tmp_path / "o")
    found = answer("compare", model, *words)
    around = {"device", "dtype", "text_encoders"}
    assert {"arms", "model", "prompt", "seed", "steps", "guidance", *around} == set(found)
    assert (found["dtype"], found["text_encoders"]) == ("fp32", None)
    reference, made, loaded = found["arms"]
    for arm in found["arms"]:
        assert {"arm", "image", "seconds", "ledger", *MEASURES} <= set(arm)
        assert Path(arm["image"]).parent == tmp_path / "o"
    assert (reference["latent_mse"], reference["psnr"], reference["ssim"]) == (0, None, pytest.approx(1))
    assert made["latent_mse"] == loaded["latent_mse"] > 0
    assert [arm["arm"] for arm in found["arms"]] == ["fp16", ARM, str(artifact)]


def test_every_command_that_draws_takes_a_mode_and_says_it(answer, run, refused, model, tmp_path, artifact):
    words = ("--prompt", "", "--steps", 1, "--mode", "streaming")
    found = answer("compare", model, "--arm", "fp16", "--arm", artifact, *words)
    assert [arm["mode"] for arm in found["arms"]] == ["resident", "streaming"]
    assert found["arms"][1]["memory"]["decoded"] == 0
    code, text, err = run("compare", model, "--arm", artifact, *words)
    assert code == 0, err
    assert "streaming, " in text
    assert " MB in memory" in text
    code, text, _ = run("generate", model, "--arm", artifact, *words, "--out", tmp_path / "a.png")
    assert "streaming: " in text
    assert "bytes of weights in memory, decoded in every step" in text
    (tmp_path / "p.txt").write_text("a frog", "utf-8")
    chosen = ("--arm", "fp16", "--arm", artifact, "--prompts", tmp_path / "p.txt", "--steps", 1, "--mode", "streaming")
    found = answer("evaluate", model, *chosen)
    assert [arm["mode"] for arm in (*found["arms"], found["other_seed"])] == ["resident", "streaming", "resident"]
    line = refused("compare", model, "--arm", "fp16", "--prompt", "", "--mode", "fast")
    assert "mode must be one of auto, resident, streaming, got 'fast'" in line


def test_evaluate(answer, model, tmp_path):
    (tmp_path / "p.txt").write_text("a red frog\n\n  a blue frog \n", "utf-8")
    words = ("--arm", "fp16", "--arm", "rtn", "--prompts", tmp_path / "p.txt", "--steps", 2, "--out", tmp_path / "o")
    found = answer("evaluate", model, *words, "--seeds", 2)
    assert found["n"] == found["seeds"] == 2
    assert len(found["arms"][1]["timesteps"]["teacher_forced"]) == 2
    assert {"frechet", "cmmd", "latent_mse_median"} <= set(found["arms"][1])
    assert found["fp32"]["latent_mse"]["mean"] < found["other_seed"]["latent_mse"]["mean"]
    for arm in found["arms"]:
        assert {"arm", "ledger", "fork_rate", *MEASURES} <= set(arm)
        assert set(arm["ssim"]) == {"mean", "median", "low", "high"}
    names = ["report.html", "results.csv", "results.json", "results.md"]
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == names
    assert found["arms"][0]["psnr"] is None


def test_progress_stays_off_stdout(run, model):
    code, out, err = run("compress", model, "rtn:bits=5", "--json")
    assert code == 0
    assert json.loads(out)
    assert "compress rtn:bits=5" in err


def test_a_long_prompt_is_noted_not_cut_in_silence(run, model, tmp_path):
    prompt = "a red frog " * 20
    code, _, err = run("generate", model, "--prompt", prompt, "--steps", 1, "--out", tmp_path / "a.png")
    assert code == 0
    assert "note: only the first 10 tokens of the prompt count" in err


def test_unicode_prompts_draw(run, model, tmp_path):
    code, _, err = run("generate", model, "--prompt", "火 🐸 \u202e\x07", "--steps", 1, "--out", tmp_path / "ü.png")
    assert code == 0, err
    assert (tmp_path / "ü.png").is_file()


ARMS = {
    "kmean": "unknown arm 'kmean'; use fp16, a quantizer",
    "": "unknown arm ''",
    "rtn:bits=1": "got 1",
    "rtn:bits=4,bits=3": "given twice",
    "rtn:bits=many": "got many",
    "rtn:colour=red": "has no knob 'colour'",
    "rvq:bits=99": "rvq.bits must be a number from 0.5 to 16",
    "rvq:bits=" + "9" * 400: "rvq.bits must be",
    "kmeans:bits=3,group_size=abc": "kmeans.group_size must be one of",
    "@nope": "unknown recipe @nope; choose one of",
    "/nowhere/at/all": "is not an SDVQ artifact",
    "~nobody-at-all/x": "is not an SDVQ artifact",
    "量化": "unknown arm",
    "a\x00b": "unknown arm",
    "x" * 5000: "unknown arm",
    "/" + "x" * 5000: "is not an SDVQ artifact",
}


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: repr(arm)[:24])
def test_bad_arms(refused, model, arm):
    assert ARMS[arm] in refused("estimate", model, arm)


def test_a_folder_called_like_a_quantizer_does_not_hide_it(answer, model, tmp_path, monkeypatch):
    (tmp_path / "rtn").mkdir()
    monkeypatch.chdir(tmp_path)
    assert answer("estimate", model, "rtn")["ledger"]["weights_quantized"] > 0


MODELS = {
    "nothing": "'nothing' names no model; a model is nano, sdxl",
    "/nowhere/at/all": "does not exist; a model is",
    "": "names no model",
    "weights.ckpt": "is a pickle",
    "weights.safetensors": "does not exist",
    "owner/some-model": "pass a diffusers pipeline folder or a .safetensors checkpoint on this machine, or use nano",
    "sdxl": "or use nano",
    "~nobody-at-all/x": "a model is",
    "x" * 5000: "a model is",
    "a\x00b": "a model is",
    "模型": "names no model",
}


@pytest.mark.parametrize("name", MODELS, ids=lambda name: repr(name)[:24])
def test_bad_models(refused, name, tmp_path):
    line = refused("generate", name, "--prompt", "x", "--out", tmp_path / "a.png")
    assert MODELS[name] in line
    assert not list(tmp_path.iterdir())


def copy_of(model: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "model"))


def test_a_pipeline_of_another_class(refused, model, tmp_path):
    folder = copy_of(model, tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "StableDiffusionPipeline"}))
    assert "SDVQ reads SDXL-family pipelines" in refused("compress", folder, "rtn")
    assert "no model_index.json" in refused("estimate", folder / "scheduler", "rtn")


def test_a_unet_alone_can_be_estimated_and_not_drawn_with(refused, run, model, tmp_path):
    _, whole, _ = run("estimate", model, "rtn", "--json")
    code, alone, _ = run("estimate", Path(model) / "unet", "rtn", "--json")
    assert (code, alone) == (0, whole)
    words = ("--prompt", "a frog", "--out", tmp_path / "x.png")
    assert "it is a UNet without text encoders and VAE" in refused("generate", Path(model) / "unet", *words)


def test_a_pickle_is_refused_unread(refused, model, tmp_path):
    folder = copy_of(model, tmp_path)
    (folder / "unet" / WEIGHTS).rename(folder / "unet" / "diffusion_pytorch_model.bin")
    assert "is a pickle, which can run code" in refused("compress", folder, "rtn")
    (tmp_path / "evil.ckpt").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert "is a pickle" in refused("compress", tmp_path / "evil.ckpt", "rtn")


def test_weights_that_are_not_finite(refused, model, tmp_path, shared_data):
    folder = copy_of(model, tmp_path)
    tensors = load_file(folder / "unet" / WEIGHTS)
    name = "mid_block.resnets.0.conv1"
    tensors[f"{name}.weight"][0, 0, 0, 0] = torch.nan
    save_file(tensors, folder / "unet" / WEIGHTS, {"format": "pt"})
    before = sorted(shared_data.rglob("*"))
    line = refused("compress", folder, "rtn", "--out", tmp_path / "out")
    assert f"layer {name}: has weights that are NaN or infinite" in line
    assert not (tmp_path / "out").exists()
    new = set(shared_data.rglob("*")) - set(before)
    assert not [path for path in new if path.suffix == ".safetensors"], "nothing half-written"


def test_kept_weights_that_are_not_finite(refused, model, tmp_path):
    folder = copy_of(model, tmp_path)
    tensors = load_file(folder / "unet" / WEIGHTS)
    tensors["conv_in.bias"][0] = torch.inf
    save_file(tensors, folder / "unet" / WEIGHTS, {"format": "pt"})
    assert "conv_in.bias is NaN, infinite" in refused("compress", folder, "rtn")


def test_an_artifact_of_another_base(refused, model, artifact, tmp_path):
    folder = copy_of(model, tmp_path)
    tensors = load_file(folder / "unet" / WEIGHTS)
    tensors["conv_in.bias"] += 1
    save_file(tensors, folder / "unet" / WEIGHTS, {"format": "pt"})
    words = ("--prompt", "x", "--steps", 1, "--out", tmp_path / "a.png")
    assert "use it with the model that it was made from" in refused("generate", folder, "--arm", artifact, *words)
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("damage", ["truncated", "foreign", "newer", "flipped"])
def test_artifacts_that_are_not_sound(refused, model, artifact, tmp_path, damage):
    folder = Path(shutil.copytree(artifact, tmp_path / "a"))
    data, config = (folder / WEIGHTS).read_bytes(), json.loads((folder / "config.json").read_text())
    if damage == "truncated":
        (folder / WEIGHTS).write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        (folder / WEIGHTS).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        change = {"foreign": {"quant_method": "gptq"}, "newer": {"format_version": 9}}[damage]
        config["quantization_config"].update(change)
        (folder / "config.json").write_text(json.dumps(config))
    words = {"truncated": "damaged", "flipped": "damaged", "foreign": "SDVQ", "newer": "update SDVQ"}[damage]
    assert words in refused(
        "generate", model, "--arm", folder, "--prompt", "x", "--steps", 1, "--out", tmp_path / "o.png"
    )
    assert not (tmp_path / "o.png").exists()
    if damage != "flipped":  # `inspect` reads no tensors
        assert words in refused("inspect", folder)


@pytest.mark.parametrize(
    "words",
    [
        ("--seed", "-1"),
        ("--seed", str(2**32)),
        ("--seed", "1.5"),
        ("--seed", "9" * 5000),
        ("--steps", "0"),
        ("--steps", "151"),
        ("--steps", "x"),
        ("--guidance", "-1"),
        ("--guidance", "31"),
        ("--guidance", "nan"),
        ("--guidance", "1e999"),
        ("--device", "tpu"),
        ("--out", "a.jpg"),
        ("--arm", "nope"),
        ("--colour", "red"),
    ],
    ids=lambda words: " ".join(words)[:24],
)
def test_settings_out_of_range(refused, model, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    out = () if words[0] == "--out" else ("--out", "a.png")
    refused("generate", model, "--prompt", "x", *out, *words)
    assert not list(tmp_path.iterdir())


def test_missing_arguments(refused, model):
    assert "--prompt" in refused("generate", model, "--out", "a.png")
    refused("generate")
    refused("compare", model, "--prompt", "x")
    refused("unknown")
    refused("compare", model, *["--arm", "fp16"] * 9, "--prompt", "x")
    assert "nothing to compress" in refused("compress", model, "fp16")


def test_prompt_files(refused, model, tmp_path):
    words = ("evaluate", model, "--arm", "fp16", "--steps", 1, "--prompts")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x01")
    assert "has no prompt; write one per line" in refused(*words, tmp_path / "empty.txt")
    assert "pass a UTF-8 text file with one prompt per line" in refused(*words, tmp_path / "binary.txt")
    assert "pass a UTF-8 text file with one prompt per line" in refused(*words, tmp_path / "missing.txt")
    assert "pass a UTF-8 text file with one prompt per line" in refused(*words, tmp_path)
    refused(*words[:-1], "--n", 0)


def test_an_output_folder_that_holds_something_else(refused, model, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    assert "name a new or empty folder" in refused("compress", model, "rtn", "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_another_artifact_is_never_replaced(refused, answer, model, tmp_path):
    out, prompts = tmp_path / "out", tmp_path / "p.txt"
    prompts.write_text("a frog\n")
    made = answer("compress", model, "rtn:bits=5", "--out", out)
    assert answer("compress", model, "rtn:bits=5", "--out", out) == made | {"seconds": ANY}
    assert answer("compress", model, "rtn:bits=5,group_size=64", "--out", out)["artifact"] == str(out), "the same"
    before = (out / WEIGHTS).read_bytes()
    for arm in ("rtn:bits=4", ARM):
        last = refused("compress", model, arm, "--out", out)
        assert f"{out} holds rtn:bits=5 of {model} (" in last
        assert "name another folder, or remove that one" in last
    assert (out / WEIGHTS).read_bytes() == before
    answer("compress", model, "gptq:bits=2", "--calibration", prompts, "--out", tmp_path / "mine")
    last = refused("compress", model, "gptq:bits=2", "--timesteps", "early", "--out", tmp_path / "mine")
    assert "holds gptq:bits=2 with 1 calibration prompts of the user of" in last
    refused("compress", model + "/nowhere", "rtn", "--out", tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("command", ["compress", "generate", "compare", "evaluate"])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(refused, model, tmp_path, monkeypatch, command):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "a.png"
    monkeypatch.setattr("sdvq_core.engine.Engine.base", lambda *_: pytest.fail("it began to work"))
    monkeypatch.setattr("sdvq_core.making.Maker.make", lambda *_: pytest.fail("it began to work"))
    words = {
        "compress": ["rtn:bits=6"],
        "generate": ["--prompt", "x"],
        "compare": ["--arm", "fp16", "--prompt", "x"],
        "evaluate": ["--arm", "fp16"],
    }
    last = refused(command, model, *words[command], "--out", out)
    assert "cannot be written to (" in last
    assert "name a folder where you may write" in last


def test_an_image_that_cannot_be_written(refused, model, tmp_path):
    (tmp_path / "file").write_text("x")
    words = ("--prompt", "x", "--steps", 1, "--out", tmp_path / "file" / "a.png")
    assert "cannot be written" in refused("generate", model, *words)


@pytest.mark.slow
def test_the_bundled_model(answer, tmp_path):
    words = ("--prompt", "a frog on a blue background", "--steps", 4, "--out", tmp_path)
    found = answer("compare", "nano", "--arm", "fp16", "--arm", "rtn:bits=4", *words)
    assert found["arms"][1]["latent_mse"] > 0
    assert found["arms"][1]["ledger"]["bits_per_weight"] < 5


def test_calibration_on_own_prompts(answer, model, tmp_path):
    (tmp_path / "p.txt").write_text("a red frog\n\n a blue frog\n", "utf-8")
    words = ("--calibration", tmp_path / "p.txt", "--timesteps", "late", "--memory", 0.5)
    found = answer("compress", model, "gptq:bits=5", *words)
    assert found["recipe"] == "gptq:bits=5 with 2 calibration prompts of the user, timesteps late"
    assert all(layer["relative_output_mse"] is not None for layer in found["layers"])


def test_tune_writes_a_recipe_and_says_where(run, model, tmp_path, monkeypatch):
    monkeypatch.setattr("sdvq_core.tuning._PAIRS", 2)
    (tmp_path / "p.txt").write_text("a red frog\n", "utf-8")
    words = ("--among", "rtn:bits=3", "--among", "rtn:bits=5", "--bits", 4.6, "--calibration", tmp_path / "p.txt")
    code, out, err = run("tune", model, "--out", tmp_path / "mine.yaml", *words)
    assert code == 0, err
    assert "rules; copy it to " in out
    assert out.strip().endswith("to use it as @mine")
    assert (tmp_path / "mine.yaml").is_file()


CALIBRATION = {
    "a missing file": (("--calibration", "nothing.txt"), "pass a UTF-8 text file with one prompt per line"),
    "an empty file": (("--calibration", "empty.txt"), "has no prompt; write one per line"),
    "a file that is no text": (("--calibration", "binary.txt"), "pass a UTF-8 text file with one prompt per line"),
    "unknown timesteps": (("--timesteps", "soon"), "timesteps must be uniform, early, late or 20 weights"),
    "no statistics": (("--statistics", "nowhere"), "has no statistics.json"),
    "two sources": (("--statistics", "nowhere", "--timesteps", "late"), "leave out prompts and timesteps"),
    "no memory": (("--memory", 0), "--memory must be a number of gigabytes above 0"),
    "endless memory": (("--memory", "inf"), "--memory must be a number of gigabytes"),
}


@pytest.mark.parametrize("case", CALIBRATION)
@pytest.mark.parametrize("command", ["compress", "tune"])
def test_calibration_options_that_make_no_sense(refused, model, tmp_path, monkeypatch, command, case):
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("\n  \n")
    Path("binary.txt").write_bytes(b"\xff\xfe\x00\x81")
    words, expected = CALIBRATION[case]
    rest = ("gptq",) if command == "compress" else ("--among", "gptq", "--among", "rtn", "--bits", 9, "--out", "r.yaml")
    assert expected in refused(command, model, *rest, *words)
    assert not Path("r.yaml").exists()


def test_compress_by_its_memory_and_in_parts(answer, refused, model, tmp_path, shared_data):
    found = answer("compress", model, "rtn:bits=5", "--max-memory", "1", "--no-resume", "--out", tmp_path / "whole")
    assert found["recipe"] == "rtn:bits=5"
    assert "allow 0.0" in refused("compress", model, "rtn:bits=6", "--max-memory", "0.000001")
    assert "--max-memory must be a number of gigabytes above 0" in refused("compress", model, "rtn", "--max-memory", 0)
    assert "name its folder with --out" in refused("compress", model, "rtn:bits=6", "--partial")
    last = refused("compress", model, "rtn:bits=6", "--partial", "--out", tmp_path / "part")
    assert "no layer of rtn:bits=6 is finished" in last
