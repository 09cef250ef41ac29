"""How the pipeline around the UNets is set up: what the user decides for all arms alike.

Artifacts never depend on it: they are made without. What changes an image is in the keys of samples (`Setup.changes`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sdvq_core.diffusion.precision import check_dtype, unusual
from sdvq_core.text_encoders import AS_THEY_ARE, check_word


@dataclass(frozen=True)
class Setup:
    """dtype: auto, fp16, bf16 or fp32. offload: text encoders, VAE and the original UNet leave the GPU while idle.

    text_encoders: `16`, as they are, or the quantizer that compresses both.
    """

    dtype: str = "auto"
    offload: bool = False
    text_encoders: str = AS_THEY_ARE

    def __post_init__(self) -> None:
        check_dtype(self.dtype)
        object.__setattr__(self, "text_encoders", check_word(self.text_encoders))

    @property
    def compresses_text(self) -> bool:
        return self.text_encoders != AS_THEY_ARE

    def changes(self, device: torch.device) -> tuple[str, ...]:
        """In words, what makes images differ from those of the default setup on `device`; nothing by default."""
        dtype = unusual(self.dtype, device)
        text = [f"text encoders {self.text_encoders}"] if self.compresses_text else []
        return (*([dtype] if dtype else []), *text)


PLAIN = Setup()
