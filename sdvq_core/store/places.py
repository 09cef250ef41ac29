"""Where files are to be put, looked at before the work that makes them."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from sdvq_core.errors import StoreError
from sdvq_core.store.manifest import is_artifact, read_manifest

_UNFINISHED = ", unfinished:"  # begins what a recipe says of layers that are missing


def check_folder(folder: Path) -> None:
    """StoreError unless files can be put into `folder`, which is made where it is not there."""
    folder = folder.absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(tempfile.mkdtemp(prefix=".", dir=folder))
    except OSError as error:
        raise StoreError(
            f"{folder} cannot be written to ({error.strerror or error}); name a folder where you may write"
        ) from None


def check_place(folder: Path) -> None:
    """StoreError unless an artifact can be put in the place of `folder`: it is new, empty or an artifact."""
    if folder.exists() and not is_artifact(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"{folder} exists and is not an SDVQ artifact; name a new or empty folder")
    check_folder(folder.absolute().parent)


def check_same(folder: Path, fingerprint: str, recipe: str) -> None:
    """StoreError where `folder` has an artifact of another model or recipe, finished or not, than comes there."""
    if not is_artifact(folder):
        return
    there = read_manifest(folder)[1]
    if (there.base.fingerprint, _finished(there.recipe)) != (fingerprint, _finished(recipe)):
        raise StoreError(
            f"{folder} holds {there.recipe} of {there.base.id} ({there.base.fingerprint}), which is not replaced by "
            "another artifact; name another folder, or remove that one"
        )


def _finished(recipe: str) -> str:
    return recipe.split(_UNFINISHED)[0]
