"""What can be named, and what is known about a model before it is loaded: size, licence, whether it is at hand."""

from __future__ import annotations

from pathlib import Path

from sdvq_core.diffusion.hub import ask, cached_licence
from sdvq_core.diffusion.sources import PRESETS, Source, at_hand, cached_folder, find_source
from sdvq_core.errors import ModelError
from sdvq_core.jobs import ModelInfo


def known_models() -> list[ModelInfo]:
    """What can be named without a path, and whether it would load without network; nobody is asked."""
    return [_nano_info(), *(_info(source, _note(source)) for source in PRESETS.values())]


def about_model(name: str) -> ModelInfo:
    """One model; the Hub is asked about one that is not at hand."""
    source = find_source(name)
    if at_hand(source):
        return _info(source, _note(source))
    remote = ask(source)
    note = f"needs a download of {remote.nbytes / 1e9:.1f} GB from {source.location}"
    return _info(source, note, remote.licence)


def _nano_info() -> ModelInfo:
    try:
        return _info(find_source("nano"), "trained from scratch on Fluent emoji; runs on a CPU")
    except ModelError as error:
        return ModelInfo("nano", "nano (bundled)", "nano", False, str(error), 20, 4.0, 64)


def _note(source: Source) -> str:
    if source.no_image:
        return f"no image can be drawn with it: {source.no_image}"
    if source.kind != "hub":
        return source.location
    here = "in the Hugging Face cache"
    return here if at_hand(source) else f"needs a download of about 7 GB from {source.location}"


def _info(source: Source, note: str, licence: str = "") -> ModelInfo:
    folder = cached_folder(source.location, source.revision) if source.kind == "hub" else Path(source.location)
    return ModelInfo(
        source.name, source.label, source.tier, at_hand(source), note, source.steps, source.guidance,
        source.resolution, licence or (cached_licence(folder) if folder is not None and folder.is_dir() else ""),
    )  # fmt: skip
