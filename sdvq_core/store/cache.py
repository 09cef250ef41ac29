"""The cache of artifacts: content-keyed, so that the same recipe on the same weights is computed once."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from contextlib import suppress
from pathlib import Path

from sdvq_core.errors import StoreError
from sdvq_core.store.artifact import Artifact, remove_folder, write_artifact
from sdvq_core.store.manifest import read_manifest

_STALE_SECONDS = 24 * 3600


class ModelStore:
    """Artifacts below `root`, one folder per key."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @staticmethod
    def key(recipe_digest: str, base_fingerprint: str) -> str:
        """Key of a recipe (settings and algorithm versions) on a base model."""
        return hashlib.sha256(json.dumps([recipe_digest, base_fingerprint]).encode()).hexdigest()[:24]

    def get(self, key: str) -> Path | None:
        """Folder of a finished artifact, or None; an entry that cannot be read counts as absent and is removed."""
        folder = self.root / key
        if not folder.exists():
            return None
        try:
            read_manifest(folder)
        except StoreError:
            if folder.exists():  # else somebody removed it meanwhile
                self.drop(key)
            return None
        return folder

    def put(self, key: str, artifact: Artifact) -> Path:
        """Store an artifact, atomically; when another process was faster, its entry stays."""
        self.get(key)  # removes what cannot be read
        self._sweep()
        write_artifact(self.root / key, artifact, replace=False)
        return self.root / key

    def drop(self, key: str) -> None:
        """Remove an entry."""
        remove_folder(self.root / key)

    def _sweep(self) -> None:
        """Delete what writers that were killed left behind."""
        for path in (*self.root.glob(".*.tmp"), *self.root.glob(".*.old")):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)
