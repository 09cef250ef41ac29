"""Where the parts of a pipeline are: with offloading, on the device while they work and on the CPU while they are idle.

Without it, or where the device is the CPU, every part stays where it was loaded and nothing here moves anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

TEXT = ("text_encoder", "text_encoder_2")
VAE = "vae"
UNET = "unet"
PARTS = (*TEXT, VAE, UNET)
_HOME = torch.device("cpu")

Move = Callable[[nn.Module, torch.device], object]


def _to(module: nn.Module, device: torch.device) -> object:
    return module.to(device)


class Placement:
    """Moves `parts`, which start on the CPU where `active`, to `device` and back.

    active: whether there is anything to move; False without offloading, and on a CPU.
    """

    def __init__(
        self, parts: Mapping[str, nn.Module], device: torch.device, offload: bool = False, move: Move = _to
    ) -> None:
        self.parts, self.device, self.active = dict(parts), device, offload and device != _HOME
        self._move = move
        self._here: set[str] = set()

    def fetch(self, *names: str) -> None:
        """Bring parts to the device; what is there already stays."""
        for name in names:
            if self.active and name not in self._here:
                self._move(self.parts[name], self.device)
                self._here.add(name)

    def rest(self, *names: str) -> None:
        """Send parts to the CPU; what is there already stays."""
        for name in names:
            if self.active and name in self._here:
                self._move(self.parts[name], _HOME)
                self._here.remove(name)

    @contextmanager
    def using(self, *names: str) -> Iterator[None]:
        """Parts on the device within, on the CPU afterwards, after a failure as well."""
        away = [name for name in names if name not in self._here]
        try:
            self.fetch(*names)
            yield
        finally:
            self.rest(*away)
