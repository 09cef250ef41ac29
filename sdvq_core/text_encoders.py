"""Both text encoders of a pipeline compressed by one quantizer, for all arms alike, and what that does to the text.

Their sizes stand apart: a UNet's ledger counts the UNet. Kept in the data folder by the encoders' files and the word.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdvq_core import presets
from sdvq_core.compress import compress
from sdvq_core.errors import ConfigError
from sdvq_core.jobs import Progress
from sdvq_core.metrics.weights import relative_mse
from sdvq_core.plan import CompressionPlan, Rule
from sdvq_core.quantizers import Quantizer, parse
from sdvq_core.records import BaseInfo, LayerRecord, TextReport
from sdvq_core.store import Artifact, LayerEntry, Manifest, ModelStore, read_artifact, read_report
from sdvq_core.store.artifact import StoredTensors, digest
from sdvq_core.version import __version__

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sdvq_core.diffusion.base_model import BaseModel

AS_THEY_ARE = "16"
_VERSION = 1  # counts changes that change numbers


def check_word(word: str) -> str:
    """`word`, if it says how text encoders can be kept: `16`, or a quantizer."""
    if word == AS_THEY_ARE:
        return word
    try:
        return str(parse(word))
    except ConfigError as error:
        raise ConfigError(f"text encoders are kept as 16 or by a quantizer such as rtn:bits=8; {error}") from None


def equip(base: BaseModel, word: str, data: Path) -> Iterator[Progress | TextReport]:
    """Progress, then the report: both encoders of `base` compressed by `word`, in place."""
    from sdvq_core.diffusion.placement import TEXT
    from sdvq_core.diffusion.text_encoders import take_weights

    prompts = presets.prompts(base.source.tier)
    before = _encoded(base, prompts)
    store, ledgers = ModelStore(data / "text_encoders"), {}
    for name in TEXT:
        encoder = getattr(base.pipe, name)
        key = _key(base, name, word)
        folder = store.get(key)
        if folder is None:
            for event in _compressed(base, name, parse(word)):
                if isinstance(event, Progress):
                    yield event
                else:
                    folder = store.put(key, event)
        assert folder is not None
        take_weights(encoder, read_artifact(folder), base.dtype)
        if not base.placement.active:
            encoder.to(base.device)
        ledgers[name] = read_report(folder).ledger
    yield _report(word, ledgers, before, _encoded(base, prompts), len(prompts))


def export(base: BaseModel, word: str, data: Path, out: Path) -> None:
    """Copy what `equip` kept to `out`, a folder per encoder that `load_text_encoders` reads."""
    from sdvq_core.diffusion.placement import TEXT

    store = ModelStore(data / "text_encoders")
    for name in TEXT:
        folder = store.get(_key(base, name, word))
        assert folder is not None
        shutil.copytree(folder, out / name, dirs_exist_ok=True)


def _compressed(base: BaseModel, part: str, quantizer: Quantizer) -> Iterator[Progress | Artifact]:
    from sdvq_core.diffusion.text_encoders import config_of

    encoder: nn.Module = getattr(base.pipe, part)
    plan = CompressionPlan.resolve(encoder, [Rule("*", quantizer)])
    weights, records = {}, list[LayerRecord]()
    for result in compress(encoder, plan):
        weights[result.record.name] = result.tensor
        records.append(result.record)
        yield Progress("load", part, len(records), len(plan.assignments), f"text encoders: {result.record.name}")
    state = encoder.state_dict()
    kept = {name: state[name].half().cpu() for name in plan.kept}
    layers = {name: LayerEntry(weight.format, weight.shape, weight.meta) for name, weight in weights.items()}
    info = BaseInfo(f"{base.source.name} {part}", _key(base, part, ""))
    manifest = Manifest(info, str(quantizer), layers, plan.fallbacks, digest(StoredTensors(weights, kept)))
    yield Artifact(config_of(encoder), manifest, weights, kept, tuple(records), {"sdvq": __version__})


def _encoded(base: BaseModel, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """(states [N, L, E], pooled [N, P]) of the prompts."""
    from sdvq_core.diffusion.text import encode_prompts

    words = encode_prompts(base, prompts, base.source.resolution, guided=False)
    return words.states.float(), words.pooled.float()


def _report(
    word: str, ledgers: Mapping[str, Any], before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor], prompts: int
) -> TextReport:
    import torch

    (states, pooled), (states_now, pooled_now) = before, after
    cosine = torch.nn.functional.cosine_similarity(states, states_now, dim=-1)  # [N, L]
    errors = relative_mse(states, states_now), float(cosine.mean()), relative_mse(pooled, pooled_now)
    return TextReport(word, ledgers, prompts, *errors)


def _key(base: BaseModel, part: str, word: str) -> str:
    """Changes with the encoders' files, the arithmetic that they were loaded in, and the quantizer."""
    from sdvq_core.diffusion.fingerprint import surroundings

    recipe = parse(word).digest if word else ""
    parts = [_VERSION, surroundings(base.source), str(base.dtype), part, recipe]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
