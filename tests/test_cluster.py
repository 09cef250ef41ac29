"""A Ray cluster of two nodes on this machine: the same bytes, lost workers' layers again, the same sentences."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sdvq_core import cluster, presets
from sdvq_core.arms import parse_arm
from sdvq_core.bench.cluster import ray as ray_suite
from sdvq_core.calibration import CalibrationSettings, Here, Spread, Trajectory, collect
from sdvq_core.calibration.passes import split_passes
from sdvq_core.cluster import RayCrew, kept
from sdvq_core.diffusion import sources
from sdvq_core.engine import Engine
from sdvq_core.errors import ConfigError, LayerError
from sdvq_core.evaluation import evaluate, samples
from sdvq_core.jobs import Progress, Sampling
from sdvq_core.plan import CompressionPlan
from sdvq_core.production import Means
from sdvq_core.records import BaseInfo
from sdvq_core.statistics import trajectories
from sdvq_core.statistics_crew import CALIBRATE, Site
from sdvq_core.store import StatsInfo, StatsWriter
from sdvq_core.summaries import EvaluateJob

ray = pytest.importorskip("ray", reason="Ray is optional")
pytestmark = [pytest.mark.filterwarnings("ignore")]  # of Ray's own

WEIGHTS = "diffusion_pytorch_model.safetensors"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Any]:
    """A head and a second node, one core each."""
    from ray.cluster_utils import Cluster

    memory = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**memory, "include_dashboard": False})
    cluster.add_node(**memory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # workers import the tasks of this file
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def made(model: str, word: str, data: Path, **settings: Any) -> tuple[bytes, list[Any]]:
    *events, folder = Engine(data, "cpu", **settings).compress(model, parse_arm(word))
    return (folder / WEIGHTS).read_bytes(), events


@pytest.mark.parametrize("word", ["rvq:bits=2", "nf4"])
def test_the_bytes_are_those_of_this_machine_alone(two_nodes, tiny_pipeline_folder, tmp_path, word):
    model = str(tiny_pipeline_folder)
    wanted, alone = made(model, word, tmp_path / "local")
    found, events = made(model, word, tmp_path / "ray", means=Means(engine="ray"))
    assert found == wanted
    assert [e.done for e in events if isinstance(e, Progress)] == [e.done for e in alone if isinstance(e, Progress)]


@pytest.mark.parametrize("sequential", [False, True], ids=["at once", "block after block"])
def test_calibrated_bytes_too_and_nobody_loads_the_pipeline_here(
    two_nodes, tiny_pipeline_folder, tmp_path, monkeypatch, sequential
):
    """Two units of work, one per worker; for a sequential recipe, of three layers, on workers that take results in."""
    monkeypatch.setattr(presets, "calibration_prompts", lambda tier: ["a red frog", "a blue frog"])
    monkeypatch.setitem(sources._BATCH, "nano", 1)
    names = ("down_blocks.1*attn1.to_q", "mid_block*attn1.to_q", "up_blocks.0*attentions.0*attn1.to_q")
    rules = tuple(replace(rule, pattern=name) for name in names for rule in parse_arm("gptq:bits=2").rules[:1])
    arm = replace(parse_arm("gptq:bits=2"), rules=rules, sequential=sequential)
    model, local = str(tiny_pipeline_folder), Engine(tmp_path / "local", "cpu")
    ray_engine = Engine(tmp_path / "ray", "cpu", means=Means(engine="ray"))
    *alone, wanted = local.compress(model, arm)
    *events, found = ray_engine.compress(model, arm)
    assert (found / WEIGHTS).read_bytes() == (wanted / WEIGHTS).read_bytes()
    assert statistics_files(tmp_path / "ray") == statistics_files(tmp_path / "local")
    assert not ray_engine.is_loaded(model)
    last, wanted_last = (
        [e for e in run if isinstance(e, Progress) and e.stage == "calibrate"][-1] for run in (events, alone)
    )
    assert (last.done, last.total, last.text) == (wanted_last.done, wanted_last.total, wanted_last.text)


def statistics_files(data: Path) -> dict[str, bytes]:
    return {str(path.relative_to(data)): path.read_bytes() for path in sorted(data.glob("statistics/*/*"))}


@dataclass(frozen=True)
class Deadly:
    """A site whose first worker dies of the third call of the model; `seen` hears who opened it, and how often."""

    site: Site
    seen: Path

    def __call__(self) -> Here:
        here = self.site()
        (self.seen / f"{os.getpid()}-{id(here.model)}").touch()
        return Here(here.model, [replace(one, run=partial(self._run, one)) for one in here.trajectories])

    def _run(self, one: Trajectory) -> Iterator[object]:
        for number, item in enumerate(one.run(), start=1):
            if number == 3:
                die_once(self.seen / "died")
            yield item


def test_a_worker_lost_while_it_calibrates_costs_its_unit_once_more(two_nodes, tiny_base, tmp_path):
    """Both nodes count into one progress; a worker loads the pipeline once, whatever it is given."""
    settings = CalibrationSettings(tuple(f"a frog on {n}" for n in range(6)), 3, 4.0, batch=1, rows_per_forward=50)
    plan = CompressionPlan.resolve(tiny_base.unet, parse_arm("gptq").rules)
    names, info = [item.name for item in plan.assignments], BaseInfo("tiny", tiny_base.fingerprint)
    here = Here(tiny_base.unet, trajectories(tiny_base, tiny_base.unet, settings))
    list(collect(here, names, settings, tmp_path / "local/statistics/x", info))
    (tmp_path / "seen").mkdir()
    site = Deadly(Site(tiny_base.source, tmp_path, "cpu", settings), tmp_path / "seen")
    spread = Spread(RayCrew(CPU, torch.get_num_threads(), CALIBRATE), site, tmp_path / "sums")
    events = list(collect(spread, names, settings, tmp_path / "ray/statistics/x", info))
    assert statistics_files(tmp_path / "ray") == statistics_files(tmp_path / "local")
    opened = [path.name.split("-")[0] for path in (tmp_path / "seen").glob("*-*")]
    assert (tmp_path / "seen" / "died").exists()
    assert 2 <= len(opened) == len(set(opened)) <= 4
    done = [event.done for event in events if isinstance(event, Progress)]
    assert done == sorted(done)
    assert done[-1] == 6 * 3
    assert not (tmp_path / "sums").exists()


def meet(folder: Path) -> str:
    """Wait until two workers are here at once, a minute at most; which node this is."""
    node = str(ray.get_runtime_context().get_node_id())
    (folder / node).touch()
    for _ in range(1200):
        if len(list(folder.iterdir())) > 1:
            return node
        time.sleep(0.05)
    return "alone"


def die_once(marker: Path) -> str:
    """The first worker that is given this dies of it."""
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return "done"
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"


def test_both_nodes_work_and_a_lost_workers_task_runs_again(two_nodes, tmp_path):
    crew = RayCrew(CPU)
    (tmp_path / "met").mkdir()
    nodes = set(crew.run(meet, [tmp_path / "met"] * 2))
    assert "alone" not in nodes
    assert len(nodes) == 2
    assert list(crew.run(die_once, [tmp_path / str(n) for n in range(3)])) == ["done"] * 3


def test_a_node_that_goes_away_costs_its_layers_once_more(two_nodes, tiny_pipeline_folder, tmp_path):
    model = str(tiny_pipeline_folder)
    wanted, _ = made(model, "rvq:bits=3", tmp_path / "local")
    extra = two_nodes.add_node(num_cpus=2, object_store_memory=100 << 20)
    two_nodes.wait_for_nodes()
    gone = False
    for event in Engine(tmp_path / "ray", "cpu", means=Means(engine="ray")).compress(model, parse_arm("rvq:bits=3")):
        if isinstance(event, Progress) and event.done == 10 and not gone:
            two_nodes.remove_node(extra, allow_graceful=False)
            gone = True
    assert gone
    assert (event / WEIGHTS).read_bytes() == wanted


def wait_for(folder: Path) -> int:
    """Say that this has begun, and wait; on how many threads."""
    (folder / "begun").touch()
    while not (folder / "go").exists():
        time.sleep(0.05)
    return torch.get_num_threads()


def test_a_task_goes_on_when_the_only_node_with_its_cores_goes_away(two_nodes, tmp_path, monkeypatch):
    extra = two_nodes.add_node(num_cpus=2, object_store_memory=100 << 20)
    two_nodes.wait_for_nodes()
    found, gone = [], False
    monkeypatch.setattr(cluster, "_SHORTAGE_SECONDS", 5)
    try:
        for result in RayCrew(CPU, threads=2).watch(wait_for, [tmp_path] * 4, seconds=0.2):
            if result is None and not gone and (tmp_path / "begun").exists():
                two_nodes.remove_node(extra, allow_graceful=False)
                gone = (tmp_path / "go").touch() is None
            found += [] if result is None else [result]
    finally:
        if not gone:
            two_nodes.remove_node(extra, allow_graceful=False)
    assert gone
    assert found == [2] * 4


@dataclass(frozen=True)
class Endless:
    """A site whose first call of the model never ends; `seen` hears that it has begun."""

    site: Site
    seen: Path

    def __call__(self) -> Here:
        here = self.site()
        return Here(here.model, [replace(one, run=partial(self._run, one)) for one in here.trajectories])

    def _run(self, one: Trajectory) -> Iterator[object]:
        self.seen.touch()
        while True:
            time.sleep(0.05)
        yield


def test_a_calibration_that_is_stopped_frees_its_workers(two_nodes, tiny_base, tmp_path):
    settings = CalibrationSettings(("a", "b"), 3, 4.0, batch=1)
    site = Site(tiny_base.source, tmp_path, "cpu", settings)
    seen = Here(tiny_base.unet, trajectories(tiny_base, tiny_base.unet, settings)).survey(["conv_in"])
    spread = Spread(RayCrew(CPU), Endless(site, tmp_path / "begun"), tmp_path / "sums")
    (items,) = split_passes(seen.sources, seen.budget, seen.units)
    calls = spread.fill(items, settings, StatsWriter(tmp_path, StatsInfo(BaseInfo("tiny", "0"), {})))
    while not (tmp_path / "begun").exists():
        assert next(calls) == 0
    calls.close()
    (tmp_path / "met").mkdir()
    assert "alone" not in set(RayCrew(CPU).run(meet, [tmp_path / "met"] * 2))
    assert not list(tmp_path.rglob("*.safetensors"))


def threads_here(task: int) -> int:
    return torch.get_num_threads()


def test_a_task_computes_on_the_callers_threads_where_nodes_have_fewer_cores_too(two_nodes):
    crew = RayCrew(CPU, threads=3)
    assert list(crew.run(threads_here, range(2))) == [3, 3]
    assert crew.per_node == 1
    assert list(RayCrew(CPU).run(threads_here, range(2))) == [1, 1]


def test_a_worker_keeps_its_model_until_it_gets_other_work(monkeypatch):
    loaded = []
    monkeypatch.setattr(cluster, "_forget", [])
    load = kept(lambda name: loaded.append(name) or name)
    for purpose in ("calibrate", "calibrate", "", "", "calibrate"):
        cluster._enter(purpose)
        assert load("model") == "model"
    assert len(loaded) == 3


def fail(task: int) -> int:
    if task == 3:
        raise LayerError("conv_in", "is no good")
    return task


def test_what_goes_wrong_in_a_worker_is_said_as_ever(two_nodes):
    with pytest.raises(LayerError, match="layer conv_in: is no good"):
        list(RayCrew(CPU).run(fail, range(5)))


def test_a_cluster_without_what_is_asked_for_and_odd_words_are_refused(two_nodes, tmp_path):
    with pytest.raises(ConfigError, match="the Ray cluster has no GPU to give"):
        list(RayCrew(torch.device("cuda")).run(fail, [0]))
    with pytest.raises(ConfigError, match="engine must be one of local, ray, got 'dask'"):
        Means(engine="dask")


def test_prompts_of_an_evaluation_are_drawn_by_the_cluster(two_nodes, tiny_pipeline_folder, tmp_path, monkeypatch):
    """All but the floor of the other precision; measures are those of this machine alone, to rounding."""
    job = EvaluateJob(
        str(tiny_pipeline_folder), ("fp16", "rtn:bits=3"), ("a red frog", "green"), Sampling("", 0, 2, 4.0)
    )
    *_, alone = evaluate(Engine(tmp_path / "local", "cpu"), job)
    here, draw = [], samples._drawn
    monkeypatch.setattr(samples, "_drawn", lambda *words: here.append(words[2]) or draw(*words))
    *events, found = evaluate(Engine(tmp_path / "ray", "cpu", means=Means(engine="ray")), job)
    assert len(here) == 1
    assert any(isinstance(event, Progress) and "by the cluster" in event.text for event in events)
    for one, other in zip(found.arms[1:], alone.arms[1:], strict=True):
        assert one.to_json()["psnr"] == pytest.approx(other.to_json()["psnr"], rel=1e-3)
        assert one.to_json()["latent_mse"] == pytest.approx(other.to_json()["latent_mse"], rel=1e-3, abs=1e-9)


def test_the_benchmark_compares_bytes_as_well() -> None:
    """Small here; it has clusters of its own."""
    ray.shutdown()
    alone, one, two = ray_suite(6, 64, "rtn")
    assert (alone.ratio, one.ratio) == (None, None)
    assert two.ratio is not None
    assert [one.note, two.note] == ["the same bytes"] * 2
