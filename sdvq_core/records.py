"""Frozen records that travel between the rooms: numbers and names, no behaviour beyond simple derived values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

Curve = tuple[tuple[int, float], ...]  # (update, loss on held-out images) of a training

PARTS = ("codes", "codebooks", "scales", "kept")


@dataclass(frozen=True, eq=False)
class LayerStats:
    """What a layer's inputs looked like during calibration.

    second_moment: H = E[x x^T], float32 [n, n] with n = I * T in the row order of `grouping.to_rows`.
    rows: input vectors seen.
    """

    second_moment: Tensor
    rows: int

    @property
    def column_weights(self) -> Tensor:
        """Mean square of each input column, [n]: the diagonal of H."""
        return self.second_moment.diagonal()


@dataclass(frozen=True)
class Fallback:
    """A layer that a rule wanted compressed but that stays in 16 bits, and why."""

    layer: str
    reason: str


@dataclass(frozen=True)
class Ledger:
    """Where every byte of the UNet goes; the one size statement of the product (ARCHITECTURE.md, bits ledger).

    weights: parameters of the original UNet. weights_quantized: those in compressed layers.
    parts: bytes of codes, codebooks, scales and of everything kept in 16 bits. file_bytes: the safetensors file.
    """

    weights: int
    weights_quantized: int
    parts: Mapping[str, int]
    file_bytes: int
    fallbacks: tuple[Fallback, ...] = ()

    @property
    def tensor_bytes(self) -> int:
        return sum(self.parts.values())

    @property
    def fp16_bytes(self) -> int:
        return 2 * self.weights

    @property
    def ratio(self) -> float:
        return self.fp16_bytes / self.tensor_bytes

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.tensor_bytes / self.weights

    @property
    def bits_per_quantized_weight(self) -> float | None:
        code_bytes = self.tensor_bytes - self.parts["kept"]
        return 8 * code_bytes / self.weights_quantized if self.weights_quantized else None

    def to_json(self) -> dict[str, Any]:
        derived = ("tensor_bytes", "fp16_bytes", "ratio", "bits_per_weight", "bits_per_quantized_weight")
        return {**asdict(self), **{name: getattr(self, name) for name in derived}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Ledger:
        """What `to_json` wrote."""
        fallbacks = tuple(Fallback(item["layer"], item["reason"]) for item in data["fallbacks"])
        return cls(data["weights"], data["weights_quantized"], dict(data["parts"]), data["file_bytes"], fallbacks)


@dataclass(frozen=True)
class Footprint:
    """How a UNet keeps its weights in memory, and what they take there (not on disk: that is the ledger's).

    mode: "resident", weights as the layers compute with them, as float UNets always have them; or "streaming", codes
    that are decoded in every step. nbytes: codes and what stays in floats, and decoded weights where they are kept.
    decoded_nbytes: of those, decoded weights. scratch_nbytes: beside those, the most that decoding a weight takes for a
    moment in a step: the weight, and what it is made from on the way (float32, unpacked codes), by format and device.
    """

    mode: str
    nbytes: int
    decoded_nbytes: int = 0
    scratch_nbytes: int = 0

    @property
    def decoding(self) -> str:
        """When weights are decoded, in words; empty for float weights."""
        return "decoded in every step" if self.mode == "streaming" else "decoded once" if self.decoded_nbytes else ""

    def to_json(self) -> dict[str, int]:
        """The bytes; `mode` stands beside them."""
        return {"weights": self.nbytes, "decoded": self.decoded_nbytes, "scratch": self.scratch_nbytes}


@dataclass(frozen=True)
class TextReport:
    """What compressing both text encoders saved and cost; their bytes are no part of any UNet's ledger.

    word: how. ledgers: by encoder. Against the encoders as they were, over `prompts` prompts: state_error and
    pooled_error, |s - s0|^2 / |s0|^2; state_cosine, mean cosine of a token's state with what it was.
    """

    word: str
    ledgers: Mapping[str, Ledger]
    prompts: int
    state_error: float
    state_cosine: float
    pooled_error: float

    @property
    def nbytes(self) -> int:
        return sum(ledger.tensor_bytes for ledger in self.ledgers.values())

    @property
    def fp16_bytes(self) -> int:
        return sum(ledger.fp16_bytes for ledger in self.ledgers.values())

    @property
    def sentence(self) -> str:
        """All of it, for people."""
        return (
            f"text encoders in {self.word}: {self.nbytes:,} bytes instead of {self.fp16_bytes:,}; over {self.prompts} "
            f"prompts their states change by {self.state_error:.2g} (relative squared error, cosine "
            f"{self.state_cosine:.4f}), the pooled text by {self.pooled_error:.2g}"
        )

    def to_json(self) -> dict[str, Any]:
        ledgers = {name: ledger.to_json() for name, ledger in self.ledgers.items()}
        return {**asdict(self), "ledgers": ledgers, "nbytes": self.nbytes, "fp16_bytes": self.fp16_bytes}


@dataclass(frozen=True)
class LayerRecord:
    """One line of the layer table. relative_mse = |Wq - W|^2 / |W|^2; relative_output_mse needs calibration."""

    name: str
    kind: str
    shape: tuple[int, ...]
    quantizer: str
    bits_per_weight: float
    nbytes: int
    relative_mse: float
    relative_output_mse: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class BaseInfo:
    """Which model an artifact was made from: its name when it was made, and the digest of its UNet's content."""

    id: str
    fingerprint: str


@dataclass(frozen=True)
class Report:
    """All that is known of one compressed UNet: what `compress` and `inspect` return.

    layers: the compressed ones. kept: names of the Linear and Conv2d layers that the recipe leaves in 16 bits; those
    that it wanted compressed and could not are the ledger's fallbacks. curve: of its distillation.
    """

    artifact: str
    base: BaseInfo
    recipe: str
    ledger: Ledger
    layers: tuple[LayerRecord, ...]
    seconds: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    curve: Curve = ()
    kept: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "ledger": self.ledger.to_json(), "layers": [layer.to_json() for layer in self.layers]}
