"""Peers: other libraries' quantizers as arms, run by the libraries themselves. Every module registers when imported."""

from importlib import import_module
from pkgutil import iter_modules

from sdvq_core.peers.base import EXTRA, PREFIX, Peer, PeerInfo, catalogue, parse
from sdvq_core.peers.making import PeerUnet, make_peer, peer_ledger, peer_plan

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = [
    "EXTRA",
    "PREFIX",
    "Peer",
    "PeerInfo",
    "PeerUnet",
    "catalogue",
    "make_peer",
    "parse",
    "peer_ledger",
    "peer_plan",
]
