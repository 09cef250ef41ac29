"""Layer statistics on disk: one safetensors file per distinct input, and a manifest that says whose they are.

statistics.json: version, base (id, fingerprint), settings (what else the numbers depend on), one entry per matrix
(file, its SHA-256, the layers that share it, rows seen, block layout), and the SHA-256 of all that. Files appear whole
or not at all; the manifest is rewritten after every pass, so that a run that was killed goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sdvq_core.errors import StoreError
from sdvq_core.records import BaseInfo, LayerStats
from sdvq_core.store.block_diagonal import BlockLayout
from sdvq_core.store.images import write_bytes

STATS_NAME = "statistics.json"
STATS_VERSION = 1
_TENSOR = "second_moment"
_AGAIN = "calibrate again"


@dataclass(frozen=True)
class StatsInfo:
    """Whose statistics: the base model, and every setting that shaped the numbers (JSON values)."""

    base: BaseInfo
    settings: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Name of their folder in a cache: a digest of the model's content and of the settings."""
        content = [STATS_VERSION, self.base.fingerprint, self.settings]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class MomentEntry:
    """One stored matrix and the layers that read the same input."""

    file: str
    sha256: str
    layers: tuple[str, ...]
    rows: int
    layout: BlockLayout

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MomentEntry:
        layout = BlockLayout(**data["layout"])
        return cls(str(data["file"]), str(data["sha256"]), tuple(data["layers"]), int(data["rows"]), layout)


class StatsFolder(Mapping[str, LayerStats]):
    """Read-only statistics by layer name; a matrix is mapped from its file when it is asked for and not kept.

    borrowed_by: the model they are used for, where that is not the one that they were gathered on. A matrix that was
    gathered in blocks (`block_size` tells) becomes dense when it is loaded, with zeros outside its blocks.
    """

    def __init__(
        self, folder: Path, info: StatsInfo, entries: Sequence[MomentEntry], borrowed_by: BaseInfo | None = None
    ) -> None:
        self.folder, self.info, self.borrowed_by = folder, info, borrowed_by
        self.entries = tuple(entries)
        self._of = {layer: entry for entry in entries for layer in entry.layers}
        self._checked: set[str] = set()

    @classmethod
    def open(cls, folder: Path, base: BaseInfo, allow_other_base: bool = False) -> StatsFolder:
        """The statistics in `folder` for use with `base`; those of another model only with `allow_other_base`."""
        info, entries = read_stats_manifest(folder)
        if info.base.fingerprint == base.fingerprint:
            return cls(folder, info, entries)
        if not allow_other_base:
            raise StoreError(
                f"{folder} holds statistics of {info.base.id} ({info.base.fingerprint}), not of {base.id} "
                f"({base.fingerprint}); {_AGAIN}, or allow those of another base model"
            )
        return cls(folder, info, entries, base)

    def __getitem__(self, name: str) -> LayerStats:
        entry = self._of[name]
        return LayerStats(entry.layout.dense(self._load(entry)), entry.rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._of)

    def __len__(self) -> int:
        return len(self._of)

    def __contains__(self, name: object) -> bool:
        return name in self._of

    def only(self, names: Iterable[str]) -> StatsFolder:
        """The same statistics of the layers `names` alone, as far as they are here."""
        wanted = set(names)
        kept = [replace(entry, layers=tuple(n for n in entry.layers if n in wanted)) for entry in self.entries]
        found = StatsFolder(self.folder, self.info, [entry for entry in kept if entry.layers], self.borrowed_by)
        found._checked = self._checked
        return found

    def columns(self, name: str) -> int:
        """n of a layer's matrix, read from the manifest."""
        return self._of[name].layout.n

    def block_size(self, name: str) -> int | None:
        """Columns per diagonal block of a layer's matrix, or None where it is whole."""
        layout = self._of[name].layout
        return None if layout.is_whole else layout.block

    @property
    def nbytes(self) -> int:
        """Bytes of all matrices; a shared one counts once."""
        return sum(entry.layout.nbytes for entry in self.entries)

    @property
    def digest(self) -> str:
        """Digest of the numbers and of the layers they belong to."""
        content = sorted([entry.sha256, *entry.layers] for entry in self.entries)
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def origin(self) -> str:
        """Where the statistics come from, in words for a receipt."""
        borrowed = f", borrowed for {self.borrowed_by.id}" if self.borrowed_by else ""
        return f"{self.info.base.id} ({self.info.base.fingerprint}){borrowed}"

    def _load(self, entry: MomentEntry) -> Tensor:
        """Blocks [K, b, b] of a matrix, checked against the SHA-256 when first read."""
        path = self.folder / entry.file
        try:
            if entry.file not in self._checked and _sha256(path) != entry.sha256:
                raise StoreError(f"{path} is damaged: its content does not match its SHA-256; {_AGAIN}")
            self._checked.add(entry.file)
            with safe_open(path, "pt") as file:
                blocks: Tensor = file.get_tensor(_TENSOR)
        except (OSError, SafetensorError) as error:
            raise StoreError(f"{path} is missing or damaged ({error}); {_AGAIN}") from None
        layout = entry.layout
        if tuple(blocks.shape) != (layout.count, layout.block, layout.block):
            raise StoreError(f"{path} holds {list(blocks.shape)}, its manifest says otherwise; {_AGAIN}")
        return blocks


class StatsWriter:
    """Adds matrices to `folder`; goes on with what an earlier run with the same model and settings left there."""

    def __init__(self, folder: Path, info: StatsInfo) -> None:
        self.folder, self.info = folder, info
        self.entries: list[MomentEntry] = []
        if (folder / STATS_NAME).exists():
            found, entries = read_stats_manifest(folder)
            if found.key != info.key:
                raise StoreError(
                    f"{folder} holds statistics of {found.base.id} with other settings; name an empty folder"
                )
            self.entries = list(entries)

    @property
    def layers(self) -> set[str]:
        """Names of the layers that are done."""
        return {layer for entry in self.entries for layer in entry.layers}

    def add(self, layers: Sequence[str], blocks: Tensor, layout: BlockLayout, rows: int) -> None:
        """Write one matrix, blocks [K, b, b], shared by `layers`; it counts when `commit` is called."""
        self.entries.append(write_moment(self.folder, layers, blocks, layout, rows))

    def commit(self) -> StatsFolder:
        """Rewrite the manifest, atomically, and return what is there now."""
        body = {
            "version": STATS_VERSION,
            "base": asdict(self.info.base),
            "settings": dict(self.info.settings),
            "moments": [asdict(entry) for entry in self.entries],
        }
        text = json.dumps({**body, "sha256": _body_digest(body)}, indent=1, sort_keys=True)
        write_bytes(self.folder / STATS_NAME, text.encode() + b"\n")
        return StatsFolder(self.folder, self.info, self.entries)


def write_moment(folder: Path, layers: Sequence[str], blocks: Tensor, layout: BlockLayout, rows: int) -> MomentEntry:
    """Write one matrix, blocks [K, b, b], shared by `layers`; its line of the manifest."""
    path = folder / f"{layers[0]}.safetensors"
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({_TENSOR: blocks.contiguous()}, temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        sha256 = _sha256(temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{path} cannot be written ({error})") from None
    finally:
        with suppress(OSError):
            temporary.unlink()
    return MomentEntry(path.name, sha256, tuple(layers), rows, layout)


def read_stats_manifest(folder: Path) -> tuple[StatsInfo, tuple[MomentEntry, ...]]:
    """(whose statistics, the matrices) in `folder`; no matrix is read."""
    path = folder / STATS_NAME
    try:
        data = json.loads(path.read_text("utf-8"))
        if data["version"] > STATS_VERSION:
            raise StoreError(
                f"{path} has version {data['version']}, this program reads up to {STATS_VERSION}; update SDVQ"
            )
        if data.pop("sha256") != _body_digest(data):
            raise StoreError(f"{path} is damaged: its content does not match its SHA-256; {_AGAIN}")
        entries = tuple(MomentEntry.from_json(item) for item in data["moments"])
        return StatsInfo(BaseInfo(**data["base"]), data["settings"]), entries
    except FileNotFoundError:
        raise StoreError(f"{folder} holds no statistics: it has no {STATS_NAME}; {_AGAIN}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, AssertionError) as error:
        raise StoreError(f"{path} is damaged ({error}); {_AGAIN}") from None


def _body_digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
