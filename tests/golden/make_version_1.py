"""How version-1/ was made, once, by `python tests/golden/make_version_1.py`; a new format version gets a new folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from sdvq_core.quantizers import parse
from sdvq_core.records import BaseInfo
from sdvq_core.store.artifact import Artifact, StoredTensors, digest, write_artifact
from sdvq_core.store.manifest import LayerEntry, Manifest

FOLDER = Path(__file__).parent / "version-1"
LAYERS = {
    "affine": ("rtn:bits=3,group_size=16", (5, 24)),
    "affine_conv": ("rtn:bits=4", (6, 5, 3, 3)),
    "levels": ("nf4", (4, 70)),
    "codebook": ("kmeans:code_bits=4,group_size=4,share=layer", (7, 20)),
    "additive": ("rvq:codebooks=3,code_bits=5,group_size=8,share=layer", (9, 24)),
    "additive_conv": ("rvq:codebooks=2,code_bits=4,group_size=4,share=layer", (3, 6, 3, 3)),
    "shared": ("rvq:codebooks=2,code_bits=4,share=model", (8, 16)),
}


def make(folder: Path, layers: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Compress random weights, write the artifact and what it decodes to."""
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: parse(word).quantize(torch.randn(shape, generator=generator)) for name, (word, shape) in layers.items()
    }
    kept = {"conv_in.bias": torch.arange(3, dtype=torch.float16)}
    entries = {name: LayerEntry(weight.format, weight.shape, weight.meta) for name, weight in weights.items()}
    manifest = Manifest(BaseInfo("golden", "0" * 16), "golden", entries, (), digest(StoredTensors(weights, kept)))
    write_artifact(folder, Artifact({"in_channels": 4}, manifest, weights, kept, (), {"sdvq": "golden"}))
    decoded = {name: weight.dequantize().contiguous() for name, weight in weights.items()}
    save_file(decoded, folder / "decoded.safetensors")


if __name__ == "__main__":
    make(FOLDER, LAYERS)
