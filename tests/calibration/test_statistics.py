"""Budgets, files, fingerprints, mistakes, and the block-sequential mode."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from calibration_runs import BASE, Siblings, gather, last, settings, sibling_inputs, trajectory
from core_cases import gaussian, tiny_unet
from torch import nn

from sdvq_core.calibration import GroupStats, Here, Trajectory, block_groups, collect, collect_sequential, read_prompts
from sdvq_core.errors import ConfigError, LayerError, StoreError
from sdvq_core.jobs import Notice, Progress
from sdvq_core.records import BaseInfo
from sdvq_core.store import BlockLayout, StatsFolder
from sdvq_core.store.block_diagonal import layouts
from sdvq_core.store.statistics import STATS_NAME

OTHER = BaseInfo("fine-tune", "fedcba9876543210")
NAMES = ("to_q", "to_k", "to_v", "out", "text_k", "text_v")


@pytest.fixture
def model() -> Siblings:
    torch.manual_seed(0)
    return Siblings()


@pytest.fixture
def run(model: Siblings) -> Trajectory:
    return trajectory(model, sibling_inputs())


def test_passes_within_a_budget_give_the_same_matrices(model, run, tmp_path):
    chosen = settings(rows_per_forward=7)
    one = gather(model, NAMES, [run], tmp_path / "one", chosen)
    events = list(collect(Here(model, [run]), NAMES, chosen, tmp_path / "many", BASE, 24 * 24 * 4))
    many = last(events)
    assert [event.total for event in events if isinstance(event, Progress)] == [6] * 6
    assert [event.done for event in events if isinstance(event, Progress)] == [*range(1, 7)]
    assert one.digest == many.digest
    for name in NAMES:
        assert torch.equal(one[name].second_moment, many[name].second_moment)


def test_a_matrix_beyond_the_budget_is_kept_in_blocks_and_says_so(tmp_path):
    model = nn.Sequential(nn.Conv2d(20, 16, 3, padding=1), nn.Conv2d(16, 16, 1))
    run = trajectory(model, [[gaussian((2, 20, 6, 6), seed, 1.0)] for seed in range(3)])
    whole = gather(model, ["0", "1"], [run], tmp_path / "whole")
    for budget, block in ((3 * 60 * 60 * 4, 60), (9 * 20 * 20 * 4, 20), (27 * 8 * 8 * 4, 8)):
        folder = tmp_path / str(block)
        events = list(collect(Here(model, [run]), ["0", "1"], settings(), folder, BASE, budget))
        stats = last(events)
        notice = next(event.text for event in events if isinstance(event, Notice))
        assert f"blocks of {block} columns, not 180; the whole matrix exceeds the memory budget" in notice
        again = list(collect(Here(model, [run]), ["0", "1"], settings(), folder, BASE))
        assert "an earlier run had less memory" in again[0].text
        assert len(again) == 2
        assert (stats.block_size("0"), stats.block_size("1"), whole.block_size("0")) == (block, None, None)
        found, expected = stats["0"].second_moment, whole["0"].second_moment
        start = torch.arange(180) // 20 * 20 if block < 20 else torch.zeros(180, dtype=torch.long)
        label = start * 1000 + (torch.arange(180) - start) // block
        torch.testing.assert_close(found, expected * (label[:, None] == label))
    with pytest.raises(ConfigError, match="must be 6912 bytes or more for layer 0, got 6000"):
        gather(model, ["0", "1"], [run], tmp_path / "none", budget=6000)


def test_layouts_go_from_the_whole_to_small_blocks():
    found = layouts(180, 20, 3)
    assert [(item.span, item.block) for item in found] == [(180, 180), (180, 60), (180, 20), (20, 8)]
    assert [item.block for item in layouts(64, 64, 1)] == [64, 32, 16, 8]
    assert all(large.nbytes > small.nbytes for large, small in pairwise(found))
    blocks = gaussian((18, 16, 16), 0, 1.0)
    assert BlockLayout(180, 20, 16).dense(blocks).shape == (180, 180)


def test_statistics_are_read_again_lazily(model, run, tmp_path):
    made = gather(model, NAMES, [run], tmp_path)
    found = StatsFolder.open(tmp_path, BASE)
    assert set(found) == set(NAMES)
    assert (found.digest, found.info.key, found.nbytes) == (made.digest, made.info.key, made.nbytes)
    for name in NAMES:
        assert torch.equal(found[name].second_moment, made[name].second_moment)
        assert found[name].rows == made[name].rows
    assert "conv_in" not in found
    with pytest.raises(KeyError):
        _ = found["conv_in"]


def test_what_is_there_is_not_gathered_again(model, run, tmp_path):
    gather(model, ["to_q"], [run], tmp_path)
    written = (tmp_path / "to_q.safetensors").stat().st_mtime_ns
    events = list(collect(Here(model, [run]), ["to_q", "out"], settings(), tmp_path, BASE))
    assert "statistics of 1 layers" in events[0].text
    assert set(last(events)) == {"to_q", "out"}
    assert (tmp_path / "to_q.safetensors").stat().st_mtime_ns == written
    assert [type(event) for event in collect(Here(model, [run]), ["to_q"], settings(), tmp_path, BASE)] == [StatsFolder]


def test_a_run_that_was_stopped_keeps_its_finished_passes_and_leaves_no_hooks(model, run, tmp_path):
    events = collect(Here(model, [run]), NAMES, settings(), tmp_path, BASE, 24 * 24 * 4)
    for event in events:
        if event.done == 4:
            break
    events.close()
    assert set(StatsFolder.open(tmp_path, BASE)) == {"to_q", "to_k", "to_v"}
    assert not any(layer._forward_pre_hooks for layer in model.modules())
    resumed = last(collect(Here(model, [run]), NAMES, settings(), tmp_path, BASE, 24 * 24 * 4))
    assert resumed.digest == gather(model, NAMES, [run], tmp_path / "whole").digest


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "foreign"])
def test_a_damaged_matrix_is_a_store_error(model, run, tmp_path, damage):
    gather(model, ["out"], [run], tmp_path)
    file = tmp_path / "out.safetensors"
    data = file.read_bytes()
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes({"truncate": data[:-7], "flip": data[:-1] + b"\xff", "foreign": b"hello"}[damage])
    with pytest.raises(StoreError, match=r"out.safetensors is .*calibrate again"):
        _ = StatsFolder.open(tmp_path, BASE)["out"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 99}', '{"version": "x"}'])
def test_a_damaged_manifest_is_a_store_error(model, run, tmp_path, text):
    gather(model, ["out"], [run], tmp_path)
    (tmp_path / STATS_NAME).write_text(text)
    with pytest.raises(StoreError, match=r"damaged|up to 1"):
        StatsFolder.open(tmp_path, BASE)


def test_an_edited_manifest_is_refused(model, run, tmp_path):
    gather(model, ["out"], [run], tmp_path)
    path = tmp_path / STATS_NAME
    data = json.loads(path.read_text())
    data["base"]["fingerprint"] = OTHER.fingerprint
    path.write_text(json.dumps(data))
    with pytest.raises(StoreError, match="does not match its SHA-256"):
        StatsFolder.open(tmp_path, OTHER)


def test_statistics_of_another_model_are_refused_unless_asked_for(model, run, tmp_path):
    gather(model, ["out"], [run], tmp_path)
    with pytest.raises(StoreError, match=r"holds statistics of tiny .* not of fine-tune"):
        StatsFolder.open(tmp_path, OTHER)
    borrowed = StatsFolder.open(tmp_path, OTHER, allow_other_base=True)
    assert borrowed.borrowed_by == OTHER
    assert borrowed.origin == "tiny (0123456789abcdef), borrowed for fine-tune"
    assert StatsFolder.open(tmp_path, BASE, allow_other_base=True).borrowed_by is None
    with pytest.raises(StoreError, match="with other settings"):
        gather(model, ["out"], [run], tmp_path, settings(seed=5))
    with pytest.raises(StoreError, match=r"has no statistics.json"):
        StatsFolder.open(tmp_path / "nothing", BASE)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_name_layer_and_timestep(model, tmp_path, value):
    inputs = sibling_inputs()
    inputs[1][2] = inputs[1][2].clone()
    inputs[1][2][0, 0, 0] = value
    with pytest.raises(LayerError, match=r"layer text_k: .*NaN or infinite at step 2 of 3, timestep 899"):
        gather(model, NAMES, [trajectory(model, inputs)], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {".lock"}
    assert not any(layer._forward_pre_hooks for layer in model.modules())


def test_layers_that_cannot_have_statistics_are_named(model, run, tmp_path):
    model.unused, model.norm = nn.Linear(8, 8), nn.LayerNorm(8)
    model.grouped = nn.Conv2d(8, 8, 3, groups=2)
    for name, words in (
        ("nothing", "no such layer"),
        ("unused", "not reached"),
        ("norm", "Linear and Conv2d"),
        ("grouped", "grouped"),
    ):
        with pytest.raises(LayerError, match=f"layer {name}: .*{words}"):
            gather(model, [name], [run], tmp_path)
    with pytest.raises(ConfigError, match="at least one trajectory"):
        gather(model, ["out"], [], tmp_path)
    with pytest.raises(ConfigError, match="made no step"):
        gather(model, ["out"], [Trajectory(lambda: iter(()), 0)], tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompts": ()}, "at least one prompt"),
        ({"prompts": ("  ",)}, "at least one prompt"),
        ({"batch": 0}, "batch must be 1 or more"),
        ({"rows_per_forward": 0}, "rows_per_forward must be 1 or more"),
        ({"steps": 0}, "steps must be"),
        ({"step_weights": (1.0,)}, "must be 3 numbers"),
        ({"step_weights": (0.0, 0.0, 0.0)}, "not all 0"),
        ({"step_weights": (1.0, -1.0, 0.0)}, "0 or more"),
    ],
)
def test_settings_that_make_no_sense(changes, words):
    with pytest.raises(ConfigError, match=words):
        settings(**changes)


def test_settings_make_batches_and_a_fingerprint():
    chosen = settings(prompts=("a", "b", "c"), batch=2, seed=7)
    assert [[(s.prompt, s.seed) for s in batch] for batch in chosen.batches()] == [[("a", 7), ("b", 8)], [("c", 9)]]
    assert chosen.to_json() != settings(prompts=("a", "b", "d"), batch=2, seed=7).to_json()
    assert chosen.after("plan").to_json() != chosen.to_json()
    assert chosen.to_json()["units"] == 2  # how sums are ordered shapes their last bits
    assert "units" not in settings(prompts=("a", "b", "c"), batch=3).to_json()


def test_prompt_files(tmp_path):
    path = tmp_path / "prompts.txt"
    with pytest.raises(ConfigError, match="cannot be read"):
        read_prompts(path)
    path.write_text("\n  \n")
    with pytest.raises(ConfigError, match="has no prompt"):
        read_prompts(path)
    path.write_text(" a frog\n\na cat\n")
    assert read_prompts(path) == ("a frog", "a cat")


def test_block_groups_come_in_the_order_of_the_forward():
    unet = tiny_unet()
    names = [name for name, layer in unet.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    groups = block_groups(names)
    assert list(groups) == ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"]
    assert sorted(name for group in groups.values() for name in group) == sorted(names)
    assert "conv_in" in groups["down_blocks.0"]
    assert "conv_out" in groups["up_blocks.1"]
    assert block_groups(["a", "b"]) == {"model": ["a", "b"]}


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down_blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 8))])
        self.mid_block = nn.Sequential(nn.Linear(8, 8))
        self.up_blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 8))])

    def forward(self, x):
        return self.up_blocks[0](self.mid_block(self.down_blocks[0](x)))


def test_later_groups_see_what_compressed_earlier_ones_produce(tmp_path):
    model, x = Blocks(), gaussian((16, 8), 0, 1.0)
    names = ["up_blocks.0.0", "mid_block.0", "down_blocks.0.0"]
    chosen, runs = settings(context="halved"), [trajectory(model, [[x], [x]])]
    seen = {}
    for event in collect_sequential(Here(model, runs), block_groups(names), chosen, tmp_path, BASE):
        if not isinstance(event, GroupStats):
            continue
        for name in event.layers:
            seen[event.group] = event.stats[name].second_moment.clone()
            with torch.no_grad():
                model.get_submodule(name).weight.div_(2)
    assert list(seen) == ["down_blocks.0", "mid_block", "up_blocks.0"]
    inputs = {"down_blocks.0": x}
    inputs["mid_block"] = model.down_blocks[0](x)
    inputs["up_blocks.0"] = model.mid_block(inputs["mid_block"])
    for group, rows in inputs.items():
        torch.testing.assert_close(seen[group], (rows.T @ rows / len(rows)).detach(), atol=1e-5, rtol=1e-4)
    again = list(collect_sequential(Here(model, runs), block_groups(names), chosen, tmp_path, BASE))
    assert [event.group for event in again] == list(seen)
