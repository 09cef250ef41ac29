"""Images on disk: lossless PNG files that carry their own receipt as text chunks."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdvq_core.errors import StoreError


def write_png(folder: Path, image: Image.Image, receipt: Mapping[str, str]) -> Path:
    """Write `image` with `receipt` as text chunks to `folder`, under a name that is the digest of its bytes."""
    chunks = PngInfo()
    for key, value in receipt.items():
        chunks.add_itxt(key, value)
    buffer = BytesIO()
    image.save(buffer, "PNG", pnginfo=chunks)
    return write_bytes(folder / f"{hashlib.sha256(buffer.getvalue()).hexdigest()[:24]}.png", buffer.getvalue())


def write_bytes(path: Path, data: bytes) -> Path:
    """Write a whole file or nothing."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise StoreError(f"{path} cannot be written ({error.strerror or error})") from None
    return path
