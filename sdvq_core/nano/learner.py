"""A model that is being trained: its optimisers, its moving average, its step count, its checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from sdvq_core.nano.optim import Average, make_optimisers, rate_at, set_learning_rate
from sdvq_core.nano.progress import load_checkpoint, save_checkpoint

CLIP_NORM = 1.0


class Learner:
    """Gradients are the trainer's business; what happens to them is the learner's."""

    def __init__(self, model: nn.Module, lr: float, *, muon: bool, decay: float = 0.01, average: float = 0.999) -> None:
        self.model, self.lr, self.steps = model, lr, 0
        self.optimisers = make_optimisers(model, lr, muon=muon, decay=decay)
        self.average = Average(model, average)

    def update(self, progress: float) -> None:
        """One step with the gradients that the model holds; `progress` 0..1 sets the rate."""
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        set_learning_rate(self.optimisers, rate_at(progress, self.lr))
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.average.update(self.model)
        self.steps += 1

    def save(self, file: Path, spent: float) -> None:
        """Everything that resuming needs."""
        save_checkpoint(
            file,
            {
                "model": self.model.state_dict(),
                "average": self.average.shadow,
                "optimisers": [o.state_dict() for o in self.optimisers],
                "steps": self.steps,
                "spent": spent,
            },
        )

    def load(self, file: Path) -> float:
        """Resume -> the seconds already spent (0 without a checkpoint)."""
        state = load_checkpoint(file)
        if state is None:
            return 0.0
        self.model.load_state_dict(state["model"])
        with torch.no_grad():
            for name, value in state["average"].items():
                self.average.shadow[name].copy_(value)
        self.steps = self.average.steps = int(state["steps"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        return float(state["spent"])
