"""What a visitor has chosen, as one value: it becomes jobs, and a link that restores the page."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from sdvq_core.errors import ConfigError
from sdvq_core.jobs import MAX_SEED, CompareJob, Sampling

REFERENCE, GRID_SEEDS = "fp16", 4
MAX_PROMPT, MAX_WORD, MAX_MORE = 2000, 200, 1000
MOST_STEPS, MOST_GUIDANCE = 50, 15.0  # that sliders offer; the service takes more
_BETWEEN_ARMS = re.compile(r"[;\n]|,(?!\s*\w+\s*=)")


@dataclass(frozen=True)
class Settings:
    """arm: the chosen quantizer with bits and knobs, as a word. grid: this seed and the next three.

    live: whether arms that are not ready may be compressed now; never part of a link.
    """

    model: str
    prompt: str
    seed: int = 0
    steps: int = 20
    guidance: float = 4.0
    baseline: str = "rtn:bits=4"
    arm: str = "rvq:bits=3"
    recipe: str = ""
    more: str = ""
    grid: bool = False
    live: bool = True

    @property
    def arms(self) -> tuple[str, ...]:
        """Every arm once, the reference first."""
        words = (REFERENCE, self.baseline, self.arm, self.recipe, *split_arms(self.more))
        return tuple(dict.fromkeys(word for word in words if word))

    @property
    def jobs(self) -> tuple[CompareJob, ...]:
        """One comparison per seed; the records check every value."""
        if not isinstance(self.prompt, str) or len(self.prompt) > MAX_PROMPT:
            raise ConfigError(f"the prompt must be text of at most {MAX_PROMPT} characters")
        first = Sampling(self.prompt, self.seed, self.steps, self.guidance)
        seeds = range(first.seed, first.seed + (GRID_SEEDS if self.grid else 1))
        if seeds[-1] > MAX_SEED:
            raise ConfigError(f"with a grid of {GRID_SEEDS} seeds, seed must be at most {MAX_SEED - GRID_SEEDS + 1}")
        samplings = [Sampling(self.prompt, seed, self.steps, self.guidance) for seed in seeds]
        return tuple(CompareJob(self.model, self.arms, sampling, self.live) for sampling in samplings)

    def to_query(self) -> dict[str, str]:
        """The settings as URL parameters; `links.read_query` is the inverse."""
        query = {
            "model": self.model,
            "prompt": self.prompt,
            "seed": str(self.seed),
            "steps": str(self.steps),
            "guidance": f"{self.guidance:g}",
            "baseline": self.baseline or "none",
            "arm": self.arm,
        }
        optional = {"recipe": self.recipe, "more": "\n".join(split_arms(self.more)), "grid": "1" if self.grid else ""}
        return query | {name: value for name, value in optional.items() if value}


def split_arms(text: str) -> tuple[str, ...]:
    """Arm words from a text with commas, semicolons or new lines; ``rtn:bits=4,group_size=64`` stays one word."""
    return tuple(word.strip() for word in _BETWEEN_ARMS.split(text[:MAX_MORE]) if word.strip())


def share_link(query: Mapping[str, str]) -> str:
    """The page's own address with `query`; on a Hugging Face Space the outer address, which visitors see."""
    text, space = urlencode(query), os.environ.get("SPACE_ID")
    return f"https://huggingface.co/spaces/{space}?{text}" if space else f"?{text}"
