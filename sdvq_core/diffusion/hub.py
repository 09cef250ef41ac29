"""A Hub model as a local pipeline folder: from the cache, else downloaded, else one sentence.

Only what a pipeline needs is downloaded: one set of safetensors weights per part (fp16 where there is one), its
configuration and tokenizers, and the model card for its licence; the configuration first, so that a model of another
family is refused before its weights are fetched. Files that arrived stay in the cache, so that a download which broke
off goes on with the next file; within a file the Hub's client takes a lost connection up again.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import HfApi, ModelCard, constants, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from sdvq_core.diffusion.folders import PICKLES, WEIGHTED, check_pipeline, check_pipeline_class, check_pipeline_config
from sdvq_core.diffusion.sources import Source, cached_folder, find_source
from sdvq_core.errors import ModelError

log = logging.getLogger(__name__)

PROBE_SECONDS = 5.0
SMALL = re.compile(r"model_index\.json|README\.md|scheduler/scheduler_config\.json|tokenizer(_2)?/[^/]+\.(json|txt)")
_ClientError: Any = HfHubHTTPError.__mro__[1]  # of the HTTP client that the Hub's library uses


@dataclass(frozen=True)
class Remote:
    """What the Hub says about a model: the files that a pipeline needs, their bytes, and the licence in words."""

    files: tuple[str, ...]
    nbytes: int
    licence: str


def hub_folder(source: Source) -> Path:
    """The pipeline folder of a Hub model; downloads what is needed where it is not in the cache."""
    folder = cached_folder(source.location, source.revision)
    if folder is None:
        folder = _download(source)
    check_pipeline(folder)
    return folder


def fetched(source: Source) -> Source:
    """`source` as its files say, which are fetched first where it is a model on the Hub."""
    if source.kind != "hub":
        return source
    hub_folder(source)
    return find_source(source.name)


def reachable() -> bool:
    """Whether the Hub answers within a few seconds (the Hub's own client retries for half a minute)."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        httpx.head(constants.ENDPOINT, timeout=PROBE_SECONDS)
    except httpx.HTTPError:
        return False
    return True


def ask(source: Source) -> Remote:
    """What the Hub says about a model; ModelError where it says nothing, or cannot be asked."""
    if not reachable():
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"
        raise ModelError(
            f"{source.location} is not in the local Hugging Face cache and {why}; no folder here is called so; "
            "pass a diffusers pipeline folder or a .safetensors checkpoint on this machine, or use nano"
        )
    try:
        info = HfApi().model_info(source.location, revision=source.revision, files_metadata=True)
    except (_ClientError, OSError, ValueError) as error:
        raise _sentence(source, error) from error
    kind = ((info.config or {}).get("diffusers") or {}).get("_class_name")
    if kind is not None:
        check_pipeline_class(kind, source.name)
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
    files = needed(list(sizes), source.name)
    card: dict[str, Any] = {} if info.card_data is None else vars(info.card_data)
    return Remote(files, sum(sizes[name] for name in files), licence_words(card))


def needed(names: Sequence[str], model: str) -> tuple[str, ...]:
    """Of the files in a repository, those that a pipeline is loaded from."""
    if "model_index.json" not in names:
        raise ModelError(
            f"{model} has no model_index.json, so it is not a diffusers pipeline: name one that is, or download its "
            ".safetensors checkpoint and pass the file"
        )
    variant = "fp16" if _weights(names, "unet", "fp16") else ""
    found = [name for name in names if SMALL.fullmatch(name)]
    for part in WEIGHTED:
        found += [name for name in names if name == f"{part}/config.json"]
        found += _weights(names, part, variant) or _weights(names, part, "")
    if not _weights(names, "unet", variant):
        pickles = [name for name in names if name.startswith("unet/") and Path(name).suffix in PICKLES]
        what = f"only a pickle ({pickles[0]}), which can run code when it is opened" if pickles else "no weights"
        raise ModelError(f"{model} holds {what} of its UNet; name a model with safetensors weights")
    return tuple(found)


def cached_licence(folder: Path) -> str:
    """The licence that the model card in a pipeline folder names; empty where there is no card."""
    try:
        return licence_words(vars(ModelCard.load(folder / "README.md").data))
    except (OSError, ValueError, AttributeError):
        return ""


def licence_words(card: Mapping[str, Any]) -> str:
    """The licence in a model card's data; one with a name of its own comes with its name and link."""
    if card.get("license") not in (None, "other"):
        return str(card["license"])
    words = [str(card[key]) for key in ("license_name", "license_link") if card.get(key)]
    return " ".join(words) or str(card.get("license") or "")


def _weights(names: Sequence[str], part: str, variant: str) -> list[str]:
    dot = re.escape(f".{variant}") if variant else ""
    stem = rf"{part}/(diffusion_pytorch_model|model)"
    shard = r"(-\d+-of-\d+)?"
    pattern = rf"{stem}({dot}{shard}\.safetensors|\.safetensors\.index{dot}\.json|{dot}\.safetensors\.index\.json)"
    return [name for name in names if re.fullmatch(pattern, name)]


def _download(source: Source) -> Path:
    from sdvq_core.diffusion.quiet import quiet  # here, so that names are resolved without loading diffusers

    remote = ask(source)
    licence = remote.licence or "not stated on its model card"
    log.warning("downloading %.1f GB of %s, licence: %s", remote.nbytes / 1e9, source.location, licence)
    configs = [name for name in remote.files if name.endswith(".json")]
    try:
        with quiet():
            check_pipeline_config(_snapshot(source, configs), source.name)
            return _snapshot(source, remote.files)
    except (_ClientError, OSError, ValueError) as error:
        raise _sentence(source, error) from error


def _snapshot(source: Source, names: Sequence[str]) -> Path:
    return Path(snapshot_download(source.location, revision=source.revision, allow_patterns=list(names)))


def _sentence(source: Source, error: Exception) -> ModelError:
    """What went wrong with a Hub model, and what to do."""
    if isinstance(error, GatedRepoError):
        return ModelError(
            f"{source.location} asks for its licence to be accepted: do so at {constants.ENDPOINT}/{source.location}, "
            "then run `hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, RevisionNotFoundError):
        return ModelError(f"{source.location} has no revision {source.revision!r}; name a branch, a tag or a commit")
    if isinstance(error, RepositoryNotFoundError):
        return ModelError(
            f"the Hub has no model {source.location}, or it is private: check owner/name, or set HF_TOKEN"
        )
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ModelError(f"{source.name} could not be downloaded ({reason}); try again, pass a folder, or use nano")
