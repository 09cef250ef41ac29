"""A Hub model as a local pipeline folder: from the cache, else downloaded, else one sentence."""

from __future__ import annotations

from pathlib import Path

import httpx
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from sdvq_core.diffusion.folders import check_pipeline
from sdvq_core.diffusion.sources import Source, cached_folder
from sdvq_core.errors import ModelError

PROBE_SECONDS = 5.0


def hub_folder(source: Source) -> Path:
    """The pipeline folder of a Hub model; downloads the fp16 safetensors where they are not in the cache."""
    folder = cached_folder(source.location, source.revision)
    if folder is None:
        if not reachable():
            raise ModelError(
                f"{source.location} is not in the local Hugging Face cache and {constants.ENDPOINT} cannot be reached; "
                "pass a diffusers pipeline folder or a .safetensors checkpoint on this machine, or use nano"
            )
        folder = _download(source.location)
    check_pipeline(folder)
    return folder


def reachable() -> bool:
    """Whether the Hub answers within a few seconds (the Hub's own client retries for half a minute)."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        httpx.head(constants.ENDPOINT, timeout=PROBE_SECONDS)
    except httpx.HTTPError:
        return False
    return True


def _download(repo: str) -> Path:
    try:
        return Path(_fetch(repo))
    except GatedRepoError:
        raise ModelError(f"{repo} asks for a licence: accept it on its Hub page and run `hf auth login`") from None
    except RepositoryNotFoundError:
        raise ModelError(f"the Hub has no model {repo}; check the id owner/name") from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{repo} could not be downloaded ({reason}); pass a folder, or use nano") from error


def _fetch(repo: str) -> str:
    from diffusers import DiffusionPipeline  # here, so that names are resolved without loading it

    from sdvq_core.diffusion.quiet import quiet

    with quiet():
        try:
            return str(DiffusionPipeline.download(repo, variant="fp16", use_safetensors=True))
        except ValueError:  # no fp16 variant
            return str(DiffusionPipeline.download(repo, use_safetensors=True))
