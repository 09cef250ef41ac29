"""Finished artifacts in a repository of the Hub, a folder per content key: `SDVQ_HUB_ARTIFACTS=owner/name`.

The repository mirrors `artifacts/` of a data folder. What comes from there is checked like any artifact: its digest,
the model that it was made from, and that its layers are stored as the arm says. Without network it is skipped: a line
in the log says so.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from sdvq_core.diffusion.sources import HUB_ID
from sdvq_core.errors import ConfigError, StoreError
from sdvq_core.jobs import Notice, Progress
from sdvq_core.plan import CompressionPlan
from sdvq_core.store import LayerEntry, ModelStore, open_artifact

VARIABLE = "SDVQ_HUB_ARTIFACTS"
_LISTED_SECONDS, _RETRY_SECONDS = 600.0, 300.0
_DATASETS = "datasets/"
_HUB_ERRORS = (HfHubHTTPError, httpx.HTTPError, OSError, ValueError)

log = logging.getLogger(__name__)


class HubArtifacts:
    """Repository `repo`, of models or with `datasets/` before its name; finds go into `store`."""

    def __init__(self, repo: str, store: ModelStore, endpoint: str | None = None) -> None:
        self.repo, self.store = repo, store
        self.kind = "dataset" if repo.startswith(_DATASETS) else "model"
        self.name = repo.removeprefix(_DATASETS)
        self._api, self._endpoint = HfApi(endpoint=endpoint), endpoint
        self._files: frozenset[str] = frozenset()
        self._next_look = 0.0
        self.trouble = ""  # why the repository could not be read, if so

    @classmethod
    def from_environment(cls, store: ModelStore) -> HubArtifacts | None:
        """What the environment names; None if it names nothing."""
        repo = os.environ.get(VARIABLE, "").strip()
        if repo and not HUB_ID.fullmatch(repo.removeprefix(_DATASETS)):
            raise ConfigError(f"{VARIABLE} must be owner/name of a repository, or datasets/owner/name, got {repo!r}")
        return cls(repo, store) if repo else None

    def has(self, key: str) -> bool:
        """Whether the repository has a folder `key`, as it was listed some minutes ago at most."""
        if time.monotonic() >= self._next_look:
            self._look()
        return f"{key}/config.json" in self._files

    def pull(self, key: str, plan: CompressionPlan, fingerprint: str) -> Iterator[Progress | Notice | Path]:
        """Progress, then the folder in the store; a notice instead where what came cannot be used."""
        wanted = sorted(name for name in self._files if name.startswith(f"{key}/"))
        temporary = self.store.root / f".{key}.{uuid.uuid4().hex}.tmp"
        try:
            for done, name in enumerate(wanted):
                yield Progress("download", "", done, len(wanted), f"{name.rpartition('/')[2]} from {self.repo}")
                hf_hub_download(
                    self.name, name, repo_type=self.kind, local_dir=temporary, endpoint=self._endpoint
                )  # fmt: skip
            self._check(temporary / key, plan, fingerprint)
            self.store.root.mkdir(parents=True, exist_ok=True)
            (temporary / key).rename(self.store.root / key)
            yield self.store.root / key
        except (StoreError, HFValidationError, *_HUB_ERRORS) as error:
            self._files -= set(wanted)
            yield Notice(f"the artifact in {self.repo} is not used: {_first_line(error)}")
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _look(self) -> None:
        try:
            found = self._api.list_repo_files(self.name, repo_type=self.kind)
            self._files, self._next_look, self.trouble = frozenset(found), time.monotonic() + _LISTED_SECONDS, ""
        except (HFValidationError, *_HUB_ERRORS) as error:
            if not self.trouble:
                log.warning("artifacts in %s are left out: %s", self.repo, _first_line(error))
            self._next_look, self.trouble = time.monotonic() + _RETRY_SECONDS, _first_line(error)

    def _check(self, folder: Path, plan: CompressionPlan, fingerprint: str) -> None:
        """StoreError unless `folder` is whole, of the right model, and stored as `plan` says."""
        with open_artifact(folder) as artifact:
            manifest = artifact.manifest
        if manifest.base.fingerprint != fingerprint:
            raise StoreError(
                f"it was made from {manifest.base.id} ({manifest.base.fingerprint}), not from {fingerprint}"
            )
        if dict(manifest.layers) != _layers(plan):
            raise StoreError("its layers are stored otherwise than this arm stores them")


def _layers(plan: CompressionPlan) -> Mapping[str, LayerEntry]:
    return {
        item.name: LayerEntry(item.quantizer.format, item.shape, item.quantizer.layout(item.shape))
        for item in plan.assignments
    }


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
