"""A Ray cluster of two nodes on this machine: the same bytes, lost workers' layers again, the same sentences."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sdvq_core import presets
from sdvq_core.arms import parse_arm
from sdvq_core.bench.cluster import ray as ray_suite
from sdvq_core.cluster import RayCrew
from sdvq_core.engine import Engine
from sdvq_core.errors import ConfigError, LayerError
from sdvq_core.evaluation import evaluate, samples
from sdvq_core.jobs import Progress, Sampling
from sdvq_core.production import Means
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


@pytest.mark.parametrize("word", ["rvq:bits=2", "gptq:bits=3", "nf4"])
def test_the_bytes_are_those_of_this_machine_alone(two_nodes, tiny_pipeline_folder, tmp_path, monkeypatch, word):
    monkeypatch.setattr(presets, "calibration_prompts", lambda tier: ["a red frog", "a blue frog"])
    model = str(tiny_pipeline_folder)
    wanted, alone = made(model, word, tmp_path / "local")
    found, events = made(model, word, tmp_path / "ray", means=Means(engine="ray"))
    assert found == wanted
    assert [e.done for e in events if isinstance(e, Progress)] == [e.done for e in alone if isinstance(e, Progress)]


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
