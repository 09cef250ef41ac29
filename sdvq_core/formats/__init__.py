"""Storage formats. Importing this room registers them all."""

from sdvq_core.formats.affine import Affine
from sdvq_core.formats.codebook import Codebook

__all__ = ["Affine", "Codebook"]
