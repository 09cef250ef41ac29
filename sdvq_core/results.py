"""Finished evaluations that the page shows: the newest one of each model, and those that come with the program.

`<data>/results/<fingerprint>.json` is rewritten by every evaluation, `assets/results/*.json` are bundled. Each is a
results.json as `evaluate` writes it, and counts for the model alone whose fingerprint it names.
"""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sdvq_core.diffusion.sources import Source
from sdvq_core.errors import StoreError
from sdvq_core.store.images import write_bytes
from sdvq_core.summaries import EvaluateJob, EvaluateResult

log = logging.getLogger(__name__)
BUNDLED = Path(__file__).resolve().parent.parent / "assets" / "results"
USUAL_PROMPTS = 128
OUT = "out/results"

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Results:
    """measured: an evaluation without its pictures. bundled: it came with the program. command: makes it again."""

    measured: EvaluateResult
    bundled: bool
    command: str


def keep_results(data: Path, result: EvaluateResult) -> None:
    """Keep `result` as the newest of its model, unless a larger one is there."""
    assert result.base is not None
    kept = _read(_path(data, result.base.fingerprint))
    if kept is not None and len(kept.job.samplings) > len(result.job.samplings):
        return
    write_bytes(_path(data, result.base.fingerprint), json.dumps(result.to_json(), indent=1, allow_nan=False).encode())


def find_results(data: Path, fingerprint: str, bundled: Path = BUNDLED) -> tuple[EvaluateResult, bool] | None:
    """The newest evaluation of a model or the bundled one, whichever has more images, and whether it is bundled."""
    found = [
        (_read(path), path.parent == bundled) for path in (_path(data, fingerprint), *sorted(bundled.glob("*.json")))
    ]
    fitting = [(one, own) for one, own in found if one is not None and one.base and one.base.fingerprint == fingerprint]
    return max(fitting, key=lambda item: len(item[0].job.samplings), default=None)


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """`count` of `items`, evenly spaced; all of them where there are not so many."""
    count = min(count, len(items))
    return [items[place * len(items) // count] for place in range(count)]


def first_command(model: str, arms: Sequence[str], prompts: Sequence[str]) -> str:
    """What measures `arms` on a model that has no results yet."""
    return _command(model, arms, {"n": min(USUAL_PROMPTS, len(prompts))})


def same_command(model: str, job: EvaluateJob, source: Source, prompts: Sequence[str]) -> str:
    """What runs `job` again. prompts: the model's own; where the job's are others, the command asks for their file."""
    sampling, count = job.sampling, len(job.prompts)
    usual = list(job.prompts) == evenly(prompts, count)
    options: dict[str, object] = {"n": count} if usual else {"prompts": "prompts.txt"}
    given = {"seeds": job.seeds, "seed": sampling.seed, "steps": sampling.steps, "guidance": sampling.guidance}
    default = {"seeds": 1, "seed": 0, "steps": source.steps, "guidance": source.guidance}
    options |= {name: value for name, value in given.items() if value != default[name]}
    return _command(model, job.arms, options)


def _command(model: str, arms: Sequence[str], options: Mapping[str, object]) -> str:
    words = ["python", "-m", "sdvq_core", "evaluate", model]
    words += [word for arm in arms for word in ("--arm", arm)]
    words += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return shlex.join([*words, "--out", OUT])


def _path(data: Path, fingerprint: str) -> Path:
    return data / "results" / f"{fingerprint}.json"


def _read(path: Path) -> EvaluateResult | None:
    """None for a file that is not there, and for one that is damaged or of another version."""
    try:
        return EvaluateResult.from_json(json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, StoreError) as error:
        log.warning("%s is passed over: %s", path, error)
        return None
