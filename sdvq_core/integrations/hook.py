"""Registers SDVQ with diffusers (and its refusal with transformers) when their quantizers are imported.

So `import sdvq_core` stays light, and it does not matter which is imported first.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

from sdvq_core.integrations.encoding import Factory, provide

Register = Callable[[ModuleType], None]


class _Loader(importlib.abc.Loader):
    def __init__(self, inner: importlib.abc.Loader, register: Register) -> None:
        self.inner, self.register = inner, register

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.inner.exec_module(module)
        self.register(module)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, target: str, register: Register) -> None:
        self.target, self.register = target, register

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self.target:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self.register)
        return spec


def install(on_load: Factory | None = None) -> None:
    """Make diffusers know the quantization method "sdvq", now or when it is imported.

    on_load: what compresses a float model while it loads; this room reads and has no search code of its own.
    """
    if on_load is not None:
        provide(on_load)
    waiting = {finder.target for finder in sys.meta_path if isinstance(finder, _Finder)}
    for target, register in _TARGETS.items():
        loaded = sys.modules.get(target)
        if loaded is not None:
            register(loaded)
        elif target not in waiting:
            sys.meta_path.insert(0, _Finder(target, register))


def _with_diffusers(auto: ModuleType) -> None:
    if (
        "sdvq_core.integrations.diffusers" in sys.modules
    ):  # it is being imported, and imports diffusers: it will register
        return
    from sdvq_core.integrations.diffusers import register

    register(auto)


def _with_transformers(auto: ModuleType) -> None:
    from sdvq_core.integrations.transformers import register

    register(auto)


_TARGETS: dict[str, Register] = {
    "diffusers.quantizers.auto": _with_diffusers,
    "transformers.quantizers.auto": _with_transformers,
}
