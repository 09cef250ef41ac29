"""Suite `ray`: the same layers compressed by a Ray cluster of one node and of two, one core each, on this machine.

Workers are started and have compressed something before the clock runs; the bytes of all runs are compared.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from sdvq_core.bench.timing import Row
from sdvq_core.cluster import RayCrew
from sdvq_core.compress import Compression
from sdvq_core.crew import Crew, Threads
from sdvq_core.diffusion.weights import UnetWeights
from sdvq_core.errors import ConfigError
from sdvq_core.plan import Assignment, CompressionPlan
from sdvq_core.quantizers import parse
from sdvq_core.store.tensor_file import write_tensors

SUITE = "ray"
_CPU = torch.device("cpu")
_STORE_NBYTES = 100 << 20


def ray(layers: int = 48, size: int = 1280, word: str = "rvq:bits=3,share=layer") -> Iterator[Row]:
    """Seconds of `layers` random layers of `size` x `size` by one thread, one node and two nodes."""
    items = [Assignment(f"layers.{n}", "linear", (size, size), parse(word)) for n in range(layers)]
    plan, generator = CompressionPlan(tuple(items), {}), torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        specs = {f"{item.name}.weight": (torch.float16, item.shape) for item in items}
        write_tensors(path, specs, lambda name: torch.randn(specs[name][1], generator=generator).half())
        weights = UnetWeights([path])
        wanted, alone = _run(plan, weights, Threads(1))
        name = f"{layers} layers of {size} x {size}, {word}"
        yield Row(SUITE, f"{name}, one thread, no cluster", alone)
        first: float | None = None
        for nodes in (1, 2):
            with _nodes(nodes):
                found, seconds = _run(plan, weights, RayCrew(_CPU))
            same = "the same bytes" if found == wanted else "OTHER BYTES"
            against = "" if first is None else "one node"
            yield Row(
                SUITE, f"{name}, nodes: {nodes}", seconds, ratio=first and first / seconds, against=against, note=same
            )
            first = first or seconds


def _run(plan: CompressionPlan, weights: UnetWeights, crew: Crew) -> tuple[str, float]:
    """(digest of all codes, seconds) of a run, after one of half the layers that does not count: all workers are up."""
    names = [item.name for item in plan.assignments]
    list(Compression(plan, weights, _CPU, crew).layers(names[: len(names) // 2]))
    state, start = hashlib.sha256(), time.perf_counter()
    for result in Compression(plan, weights, _CPU, crew).layers(names):
        for _, tensor in sorted(result.tensor.tensors.items()):
            state.update(tensor.numpy().tobytes())
    return state.hexdigest(), time.perf_counter() - start


@contextmanager
def _nodes(count: int) -> Iterator[None]:
    """A cluster of `count` nodes with one core each, named by RAY_ADDRESS."""
    try:
        import ray as library
        from ray.cluster_utils import Cluster
    except ImportError:
        raise ConfigError("the suite ray needs Ray: pip install ray") from None
    settings = {"num_cpus": 1, "object_store_memory": _STORE_NBYTES}
    cluster = Cluster(initialize_head=True, head_node_args={**settings, "include_dashboard": False})
    for _ in range(count - 1):
        cluster.add_node(**settings)
    before = os.environ.get("RAY_ADDRESS")
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        yield
    finally:
        library.shutdown()
        cluster.shutdown()
        os.environ.pop("RAY_ADDRESS") if before is None else os.environ.update(RAY_ADDRESS=before)
