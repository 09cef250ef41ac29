"""Artifacts on disk and the content-keyed cache of them."""

from sdvq_core.store.artifact import Artifact, read_artifact, read_report, write_artifact
from sdvq_core.store.cache import ModelStore
from sdvq_core.store.manifest import FORMAT_VERSION, LayerEntry, Manifest, blank_metadata, is_artifact, read_manifest

__all__ = [
    "FORMAT_VERSION",
    "Artifact",
    "LayerEntry",
    "Manifest",
    "ModelStore",
    "blank_metadata",
    "is_artifact",
    "read_artifact",
    "read_manifest",
    "read_report",
    "write_artifact",
]
