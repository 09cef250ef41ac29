"""Registers SDVQ with diffusers when diffusers' quantizers are imported, so that `import sdvq_core` stays light."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

_TARGET = "diffusers.quantizers.auto"


class _Loader(importlib.abc.Loader):
    def __init__(self, inner: importlib.abc.Loader) -> None:
        self.inner = inner

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.inner.exec_module(module)
        _register(module)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _TARGET:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


def install() -> None:
    """Make diffusers know the quantization method "sdvq", now or when it is imported."""
    loaded = sys.modules.get(_TARGET)
    if loaded is not None:
        _register(loaded)
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _register(auto: ModuleType) -> None:
    from sdvq_core.integrations.diffusers import SdvqConfig, SdvqQuantizer

    auto.AUTO_QUANTIZER_MAPPING["sdvq"] = SdvqQuantizer
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING["sdvq"] = SdvqConfig
