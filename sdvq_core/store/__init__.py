"""Artifacts on disk, finished or not, the content-keyed cache of them, and layer statistics."""

from sdvq_core.store.artifact import Artifact, write_artifact
from sdvq_core.store.block_diagonal import BlockLayout
from sdvq_core.store.cache import ModelStore
from sdvq_core.store.manifest import FORMAT_VERSION, LayerEntry, Manifest, blank_metadata, is_artifact, read_manifest
from sdvq_core.store.places import check_folder, check_place
from sdvq_core.store.reading import copy_artifact, open_artifact, read_artifact, read_report
from sdvq_core.store.statistics import MomentEntry, StatsFolder, StatsInfo, StatsWriter, write_moment
from sdvq_core.store.turns import in_turn
from sdvq_core.store.unfinished import Unfinished
from sdvq_core.store.unit_sums import UnitSum, read_sum, write_unit

__all__ = [
    "FORMAT_VERSION",
    "Artifact",
    "BlockLayout",
    "LayerEntry",
    "Manifest",
    "ModelStore",
    "MomentEntry",
    "StatsFolder",
    "StatsInfo",
    "StatsWriter",
    "Unfinished",
    "UnitSum",
    "blank_metadata",
    "check_folder",
    "check_place",
    "copy_artifact",
    "in_turn",
    "is_artifact",
    "open_artifact",
    "read_artifact",
    "read_manifest",
    "read_report",
    "read_sum",
    "write_artifact",
    "write_moment",
    "write_unit",
]
