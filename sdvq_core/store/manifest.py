"""What an artifact says about itself: `quantization_config` in config.json, and the report card in the file's metadata.

config.json holds all that is needed to rebuild the layers, so that plain diffusers can; the card holds what is only
to be read. The card has a fixed room, so that the size of the file is known before the numbers in it are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdvq_core.errors import StoreError
from sdvq_core.qtensor import Meta
from sdvq_core.records import BaseInfo, Curve, Fallback, LayerRecord

FORMAT_VERSION = 1
QUANT_METHOD = "sdvq"
CONFIG_NAME = "config.json"
CARD_KEY = "sdvq_report"
_CARD_NBYTES, _CARD_LAYER_NBYTES = 4096, 320
_CURVE_POINTS = 64


@dataclass(frozen=True)
class LayerEntry:
    """How one layer is stored."""

    format: str
    shape: tuple[int, ...]
    meta: Meta


@dataclass(frozen=True)
class Manifest:
    """The `quantization_config` of an artifact. sha256: of the stored tensors (`artifact.digest`).

    The layer table, which decides what the stored codes mean, carries a digest of its own, `layers_sha256`.
    """

    base: BaseInfo
    recipe: str
    layers: Mapping[str, LayerEntry]
    fallbacks: tuple[Fallback, ...]
    sha256: str
    format_version: int = FORMAT_VERSION

    def to_json(self) -> dict[str, Any]:
        layers = {
            name: {"format": entry.format, "shape": list(entry.shape), "meta": dict(entry.meta)}
            for name, entry in self.layers.items()
        }
        return {
            "quant_method": QUANT_METHOD,
            "base": asdict(self.base),
            "recipe": self.recipe,
            "layers": layers,
            "layers_sha256": _table_digest(layers),
            "fallbacks": [asdict(fallback) for fallback in self.fallbacks],
            "sha256": self.sha256,
            "format_version": self.format_version,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Manifest:
        """Inverse of `to_json`; StoreError for another method, a newer version or missing entries."""
        if data.get("quant_method") != QUANT_METHOD:
            raise StoreError(
                f"this folder was quantized by {data.get('quant_method')!r}; SDVQ reads its own artifacts only"
            )
        version = data.get("format_version")
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise StoreError(
                f"the artifact has format version {version}, this program reads up to {FORMAT_VERSION}; update SDVQ"
            )
        try:
            if data["layers_sha256"] != _table_digest(data["layers"]):
                raise TypeError("its layer table does not match its SHA-256")
            layers = {
                name: LayerEntry(str(item["format"]), tuple(item["shape"]), dict(item["meta"]))
                for name, item in data["layers"].items()
            }
            fallbacks = tuple(Fallback(**item) for item in data["fallbacks"])
            return cls(BaseInfo(**data["base"]), str(data["recipe"]), layers, fallbacks, str(data["sha256"]), version)
        except (KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"the artifact's quantization_config is damaged ({error}); compress the model again"
            ) from None


def _table_digest(layers: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(layers, sort_keys=True).encode()).hexdigest()


def is_artifact(folder: Path) -> bool:
    """Whether `folder` looks like an SDVQ artifact; nothing is validated."""
    try:
        config = json.loads((folder / CONFIG_NAME).read_text("utf-8"))
        return bool(config["quantization_config"]["quant_method"] == QUANT_METHOD)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_manifest(folder: Path) -> tuple[dict[str, Any], Manifest]:
    """(UNet config, manifest) of the artifact in `folder`."""
    try:
        config = json.loads((folder / CONFIG_NAME).read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        why = (
            f"it has no {CONFIG_NAME}"
            if folder.is_dir()
            else "it is a file"
            if folder.exists()
            else "it does not exist"
        )
        raise StoreError(f"{folder} is not an artifact: {why}; pass a folder made by `compress`") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{folder / CONFIG_NAME} cannot be read ({error})") from None
    if not isinstance(config, dict) or not isinstance(config.get("quantization_config"), dict):
        raise StoreError(f"{folder} is not an SDVQ artifact: its config has no quantization_config")
    return config, Manifest.from_json(config.pop("quantization_config"))


def card_metadata(records: Sequence[LayerRecord], versions: Mapping[str, str], curve: Curve = ()) -> dict[str, str]:
    """The file's metadata: layer table, versions, loss curve, padded to a room that the layer count alone decides."""
    rows = [
        [
            r.name,
            r.quantizer,
            round(r.bits_per_weight, 4),
            r.nbytes,
            _round(r.relative_mse),
            _round(r.relative_output_mse),
        ]
        for r in records
    ]
    card = {"versions": dict(versions), "layers": rows, "curve": _thinned(curve)}
    text = json.dumps(card, separators=(",", ":"))
    room = _CARD_NBYTES + _CARD_LAYER_NBYTES * len(rows)
    return {CARD_KEY: text + " " * (room - len(json.dumps(text)))}


def blank_metadata(layers: int) -> dict[str, str]:
    """Metadata of the very size that an artifact with `layers` compressed layers will carry."""
    return {CARD_KEY: " " * (_CARD_NBYTES + _CARD_LAYER_NBYTES * layers - 2)}


def read_card(file: Path) -> dict[str, str]:
    """The report card in the metadata of a safetensors file, to be written again; empty where there is none."""
    try:
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        text = header["__metadata__"][CARD_KEY]
    except (OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError):
        return {}
    return {CARD_KEY: str(text)}


def parse_card(text: str, manifest: Manifest) -> tuple[tuple[LayerRecord, ...], dict[str, str], Curve]:
    """(layer table, versions, loss curve); all empty for a folder that another library saved again, without a card."""
    if not text:
        return (), {}, ()
    try:
        card = json.loads(text)
        records = tuple(
            LayerRecord(
                name, _kind(manifest.layers[name]), manifest.layers[name].shape, quantizer, bits, nbytes, error, output
            )
            for name, quantizer, bits, nbytes, error, output in card["layers"]
        )
        curve = tuple((int(update), float(loss)) for update, loss in card.get("curve", ()))
        return records, dict(card["versions"]), curve
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"the artifact's report card is damaged ({error}); compress the model again") from None


def _thinned(curve: Curve) -> list[list[float]]:
    """At most _CURVE_POINTS of the curve, first and last among them."""
    count = min(len(curve), _CURVE_POINTS)
    picks = [round(i * (len(curve) - 1) / max(1, count - 1)) for i in range(count)]
    return [[curve[i][0], float(f"{curve[i][1]:.5e}")] for i in picks]


def _kind(entry: LayerEntry) -> str:
    return "conv2d" if len(entry.shape) == 4 else "linear"


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5e}")
