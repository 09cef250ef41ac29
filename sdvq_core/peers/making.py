"""A UNet as a peer makes it, in memory: the weights that the library decodes to, in a copy of the original.

The arm so measures the library's codes alone: all arms run the same layers in the same precision. Peers are not
saved, since our files hold our formats; they are quickly made again.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from sdvq_core.errors import ConfigError, SdvqError
from sdvq_core.ledger import build_ledger, file_nbytes, stored_specs
from sdvq_core.metrics.weights import relative_mse
from sdvq_core.nn import kind_of
from sdvq_core.peers.base import Peer, Stored
from sdvq_core.plan import CompressionPlan, vqdm_rules
from sdvq_core.qtensor import TensorSpec
from sdvq_core.quantizers import parse
from sdvq_core.records import Fallback, LayerRecord, Ledger

_OURS = parse("rtn")  # any method of ours: all compress the same layers


@dataclass(frozen=True, eq=False)
class PeerUnet:
    """What `make_peer` gives: the UNet, its size, and a line for every layer that the library quantized."""

    unet: nn.Module
    ledger: Ledger
    layers: tuple[LayerRecord, ...]


def peer_plan(unet: nn.Module) -> CompressionPlan:
    """The layers that our own arms compress, which `layers=same` takes as well."""
    return CompressionPlan.resolve(unet, vqdm_rules(_OURS))


def make_peer(unet: nn.Module, peer: Peer) -> PeerUnet:
    """`unet` with the weights that `peer` decodes to; `unet` itself is not changed."""
    made, plan = copy.deepcopy(unet), peer_plan(unet)
    specs: dict[str, Mapping[str, TensorSpec]] = {}
    reasons: dict[str, str] = {}
    records = []
    with torch.no_grad(), _calm():
        for name, found in _told(peer, _quantized(copy.deepcopy(unet).half(), peer, plan)):
            if isinstance(found, str):
                reasons[name] = found
                continue
            layer = made.get_submodule(name)
            records.append(_record(name, layer, peer, found))
            layer.weight.copy_(found.weight)  # type: ignore[operator]
            specs[name] = found.spec
    if not specs:
        raise ConfigError(f"{peer} quantized no layer of this model: {next(iter(reasons.values()), 'none suits it')}")
    return PeerUnet(made, _ledger(unet, plan, peer, specs, reasons), tuple(records))


def peer_ledger(skeleton: nn.Module, peer: Peer) -> Ledger:
    """The size that `make_peer` will state, from shapes alone: the library tries a stand-in of every shape.

    Only for `layers=same`: what a library chooses by itself is known when it has chosen.
    """
    if peer.layers != "same":
        raise ConfigError(f"the size of {peer} is known once it is made; layers=same can be told in advance")
    plan = peer_plan(skeleton)
    trials = {item.name: _trial(peer, item.shape) for item in plan.assignments}
    specs = {name: found for name, found in trials.items() if not isinstance(found, str)}
    reasons = {name: found for name, found in trials.items() if isinstance(found, str)}
    return _ledger(skeleton, plan, peer, specs, reasons)


def _quantized(unet: nn.Module, peer: Peer, plan: CompressionPlan) -> Iterator[tuple[str, Stored | str]]:
    if peer.layers == "own":
        yield from peer.own(unet)
        return
    for item in plan.assignments:
        layer = unet.get_submodule(item.name)
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        yield item.name, peer.attempt(layer)


def _told(peer: Peer, found: Iterator[tuple[str, Stored | str]]) -> Iterator[tuple[str, Stored | str]]:
    """`found`; what goes wrong inside the library is one sentence that names it."""
    try:
        yield from found
    except SdvqError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SdvqError(
            f"{peer.package} failed at {peer} ({reason}); install it again, or leave the arm out"
        ) from error


@lru_cache(maxsize=4096)
def _trial(peer: Peer, shape: tuple[int, ...]) -> Mapping[str, TensorSpec] | str:
    out, width, *kernel = shape
    layer = nn.Conv2d(width, out, tuple(kernel), bias=False) if kernel else nn.Linear(width, out, bias=False)  # type: ignore[arg-type]
    nn.init.normal_(layer.weight, std=0.02, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), _calm():
        found = peer.attempt(layer.half())
    return found if isinstance(found, str) else found.spec


def _ledger(
    unet: nn.Module,
    plan: CompressionPlan,
    peer: Peer,
    specs: Mapping[str, Mapping[str, TensorSpec]],
    reasons: Mapping[str, str],
) -> Ledger:
    """The layers of our arms that the library did not quantize stand in the ledger as fallbacks."""
    compressed = {f"{name}.weight" for name in specs}
    shapes = {name: tuple(value.shape) for name, value in unet.state_dict().items()}
    stored = stored_specs(specs, {name: shape for name, shape in shapes.items() if name not in compressed})
    left = [item.name for item in plan.assignments if item.name not in specs]
    alone = f"{peer.label} by itself leaves it in 16 bits"
    fallbacks = (*plan.fallbacks, *(Fallback(name, reasons.get(name, alone)) for name in left))
    return build_ledger([shapes[name] for name in compressed], stored, file_nbytes(stored, {}), fallbacks)


def _record(name: str, layer: nn.Module, peer: Peer, found: Stored) -> LayerRecord:
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    nbytes = sum(part.nbytes for part in found.spec.values())
    bits = 8 * nbytes / weight.numel()
    error = relative_mse(weight, found.weight)
    return LayerRecord(name, str(kind_of(layer)), tuple(weight.shape), str(peer), bits, nbytes, error)


@contextmanager
def _calm() -> Iterator[None]:
    """The libraries' warnings and chatter stay off the terminal."""
    from sdvq_core.diffusion.quiet import quiet

    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
