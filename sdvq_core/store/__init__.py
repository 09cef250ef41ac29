"""Artifacts on disk, finished or not, the content-keyed cache of them, and layer statistics."""

from sdvq_core.store.artifact import Artifact, write_artifact
from sdvq_core.store.block_diagonal import BlockLayout
from sdvq_core.store.cache import ModelStore
from sdvq_core.store.manifest import FORMAT_VERSION, LayerEntry, Manifest, blank_metadata, is_artifact, read_manifest
from sdvq_core.store.reading import copy_artifact, open_artifact, read_artifact, read_report
from sdvq_core.store.statistics import StatsFolder, StatsInfo, StatsWriter
from sdvq_core.store.unfinished import Unfinished

__all__ = [
    "FORMAT_VERSION",
    "Artifact",
    "BlockLayout",
    "LayerEntry",
    "Manifest",
    "ModelStore",
    "StatsFolder",
    "StatsInfo",
    "StatsWriter",
    "Unfinished",
    "blank_metadata",
    "copy_artifact",
    "is_artifact",
    "open_artifact",
    "read_artifact",
    "read_manifest",
    "read_report",
    "write_artifact",
]
