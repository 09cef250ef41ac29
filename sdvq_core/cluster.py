"""A crew on a Ray cluster: one task per processor core, or per GPU, of all its nodes; lost workers' tasks run again.

Tasks name files (weights, statistics), which every node must see under the same path; what comes back are compressed
layers. A task computes on one thread, as `crew.Threads` does, or on as many as the caller would, so that the bytes are
those of a run on one machine.
"""

from __future__ import annotations

import gc
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar, cast

import torch

from sdvq_core.crew import nothing
from sdvq_core.errors import ConfigError, SdvqError

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")

_AHEAD = 2  # finished results, per worker, that may wait behind one large task
_LOOK_SECONDS = 5.0  # between two looks at a silent cluster
_SHORTAGE_SECONDS = 30.0  # of silence, before what no node has the cores for is asked of smaller ones
_RETRIES = 8  # times that a task runs again because its worker was lost
_PACKAGES = Path(__file__).resolve().parents[1]  # where workers on this machine find sdvq_core


@dataclass
class _Sent(Generic[T]):
    """A task on its way. cores: that it asks for; landed: whether its result is here."""

    task: T
    reference: Any
    cores: int
    landed: bool = False


class RayCrew:
    """Workers of the cluster that RAY_ADDRESS names, of one that runs on this machine, or of one that is started now.

    device: what a task computes on; "cuda" takes a whole GPU. threads: on how many a task computes; it takes as many
    cores, or all of the largest node. purpose: a worker that goes over to another one forgets what it has `kept`.
    ConfigError without Ray, or without such a worker.
    """

    def __init__(self, device: torch.device, threads: int = 1, purpose: str = "") -> None:
        self._device, self._kind = device, "GPU" if device.type == "cuda" else "CPU"
        self._threads, self._purpose = threads, purpose

    def run(self, work: Callable[[T], R], tasks: Iterable[T], landed: Callable[[T, R], None] = nothing) -> Iterator[R]:
        """See `crew.Crew`; `landed` runs on the caller's thread."""
        for result in self._run(work, tasks, landed, _LOOK_SECONDS):
            yield from result

    def watch(self, work: Callable[[T], R], tasks: Iterable[T], seconds: float = 1.0) -> Iterator[R | None]:
        """Like `run`, and None after every so many seconds in which no result came."""
        for result in self._run(work, tasks, nothing, seconds):
            yield result[0] if result else None

    def _run(
        self, work: Callable[[T], R], tasks: Iterable[T], landed: Callable[[T, R], None], seconds: float
    ) -> Iterator[tuple[R] | tuple[()]]:
        """Results in the order of the tasks, each in a tuple; an empty one where none came for `seconds`."""
        ray, left, waiting, heard = self._ray, iter(tasks), deque[_Sent[T]](), time.monotonic()
        try:
            while True:
                waiting.extend(self._sent(work, task) for task in self._drawn(left, len(waiting)))
                if not waiting:
                    return
                while not waiting[0].landed:
                    flying = {sent.reference: sent for sent in waiting if not sent.landed}
                    ready, _ = ray.wait(list(flying), num_returns=1, timeout=seconds)
                    for reference in ready:
                        landed(flying[reference].task, self._get(reference))
                        flying[reference].landed, heard = True, time.monotonic()
                    if not ready:
                        if time.monotonic() - heard > _SHORTAGE_SECONDS:
                            self._send_again(work, flying.values())
                        yield ()
                yield (self._get(waiting.popleft().reference),)
        finally:
            for sent in waiting:
                ray.cancel(sent.reference, force=False)

    def _sent(self, work: Callable[[T], R], task: T) -> _Sent[T]:
        cores = self._cores
        share: dict[str, Any] = {"num_gpus": 1} if self._kind == "GPU" else {"num_cpus": cores}
        remote = self._remote.options(max_retries=_RETRIES, **share)
        return _Sent(task, remote.remote(work, task, self._threads, self._purpose), cores)

    def _send_again(self, work: Callable[[T], R], flying: Iterable[_Sent[T]]) -> None:
        """What asks for more cores than a node has since the largest one went away would wait for ever."""
        most = max(self._node_cores(), default=0)
        if self._kind == "GPU" or not most:  # nobody is there: a node may come back
            return
        for sent in flying:
            if sent.cores > most:
                self._ray.cancel(sent.reference, force=False)
                again = self._sent(work, sent.task)
                sent.reference, sent.cores = again.reference, again.cores

    def _drawn(self, left: Iterator[T], waiting: int) -> Iterator[T]:
        """Tasks for as many workers as there are now: nodes come and go."""
        for _ in range(self._workers() * (1 + _AHEAD) - waiting):
            try:
                yield next(left)
            except StopIteration:
                return

    def _workers(self) -> int:
        if self._kind == "GPU":
            return max(1, int(self._ray.cluster_resources().get(self._kind, 0)))
        return max(1, sum(cores // self._cores for cores in self._node_cores()))

    @property
    def per_node(self) -> int:
        """How many may share the memory of one machine, or of one GPU."""
        return 1 if self._kind == "GPU" else max(1, max(self._node_cores(), default=1) // self._cores)

    @property
    def _cores(self) -> int:
        """That a task takes."""
        return max(1, min(self._threads, max(self._node_cores(), default=1)))

    def _node_cores(self) -> list[int]:
        return [int(node["Resources"].get("CPU", 0)) for node in self._ray.nodes() if node["Alive"]]

    def _get(self, reference: Any) -> Any:
        """The result of a task; what went wrong in it goes wrong here."""
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except exceptions.RayTaskError as error:
            raise error.cause from error
        except exceptions.RayError as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise SdvqError(f"the Ray cluster lost a task for good ({reason}); what is finished is kept") from error

    @cached_property
    def _ray(self) -> Any:
        try:
            import ray
        except ImportError:
            raise ConfigError("--engine ray needs Ray: pip install ray, or leave the option out") from None
        if not ray.is_initialized():
            try:
                ray.init(log_to_driver=False, logging_level=logging.ERROR, runtime_env=_environment())
            except (ConnectionError, ValueError, RuntimeError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise ConfigError(f"the Ray cluster cannot be reached ({reason}); check RAY_ADDRESS") from error
        kind = "GPU" if self._device.type == "cuda" else "CPU"
        if ray.cluster_resources().get(kind, 0) < 1:
            raise ConfigError(
                f"the Ray cluster has no {kind} to give; add a node that has one, or use another --device"
            )
        return ray

    @cached_property
    def _remote(self) -> Any:
        return self._ray.remote(_do)


_forget: list[Callable[[], None]] = []
_purpose = ""  # of the last task of this worker


def kept(make: Callable[P, R]) -> Callable[P, R]:
    """Makes a worker keep the last answer of `make`, such as a pipeline, as long as the purpose of its tasks stays."""
    keeping = lru_cache(maxsize=1)(make)
    _forget.append(keeping.cache_clear)
    return cast(Callable[P, R], keeping)


def _enter(purpose: str) -> None:
    """Make room for work of another purpose than before."""
    global _purpose
    if purpose != _purpose:
        for forget in _forget:
            forget()
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
    _purpose = purpose


def _do(work: Callable[[T], R], task: T, threads: int, purpose: str) -> R:
    _enter(purpose)
    torch.get_num_threads()  # takes the process's number first, so that it does not come back later
    torch.set_num_threads(threads)
    return work(task)


def _environment() -> dict[str, Any]:
    """Workers import what the caller imports."""
    places = [str(_PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"env_vars": {"PYTHONPATH": os.pathsep.join(places)}}
