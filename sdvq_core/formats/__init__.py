"""Storage formats. Importing this room registers them all."""

from sdvq_core.formats.affine import Affine
from sdvq_core.formats.codebook import Codebook
from sdvq_core.formats.trellis import Trellis

__all__ = ["Affine", "Codebook", "Trellis"]
