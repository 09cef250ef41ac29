"""Quantizers: how codes are found. Every module of this room registers its methods when it is imported."""

from importlib import import_module
from pkgutil import iter_modules

from sdvq_core.quantizers.base import Knob, Quantizer, QuantizerInfo, catalogue, knob, make, parse, register

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["Knob", "Quantizer", "QuantizerInfo", "catalogue", "knob", "make", "parse", "register"]
