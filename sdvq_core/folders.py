"""Where what is computed once is kept: one folder, SDVQ_DATA or the platform's user cache folder."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def data_folder() -> Path:
    """Where caches live: SDVQ_DATA, or the platform's user cache folder."""
    return Path(os.environ.get("SDVQ_DATA") or platformdirs.user_cache_dir("sdvq", appauthor=False)).expanduser()
