"""How version-1-trellis/ was made, once, by `python tests/golden/make_version_1_trellis.py`: a later format."""

from __future__ import annotations

from pathlib import Path

from make_version_1 import make

LAYERS = {
    "columns_together": ("tcq:bits=3", (5, 24)),
    "conv": ("tcq:bits=2,state_bits=10", (6, 5, 3, 3)),
    "part_of_a_column": ("tcq:bits=4", (256, 6)),
    "wide_state": ("tcq:bits=3,state_bits=16", (130, 8)),
    "one_bit": ("tcq:bits=1", (7, 20)),
    "tiny": ("tcq:bits=2", (1, 3)),
}

if __name__ == "__main__":
    make(Path(__file__).parent / "version-1-trellis", LAYERS)
