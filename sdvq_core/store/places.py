"""Where files are to be put, looked at before the work that makes them."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from sdvq_core.errors import StoreError
from sdvq_core.store.manifest import is_artifact


def check_folder(folder: Path) -> None:
    """StoreError unless files can be put into `folder`, or into what is there of the way to it."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        shutil.rmtree(tempfile.mkdtemp(prefix=".", suffix=".tmp", dir=place))
    except OSError as error:
        raise StoreError(
            f"{folder} cannot be written to ({error.strerror or error}); name a folder where you may write"
        ) from None


def check_place(folder: Path) -> None:
    """StoreError unless an artifact can be put in the place of `folder`: it is new, empty or an artifact."""
    if folder.exists() and not is_artifact(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"{folder} exists and is not an SDVQ artifact; name a new or empty folder")
    check_folder(folder.resolve().parent)
