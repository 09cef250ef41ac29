"""SDVQ: vector quantization of text-to-image diffusion models, and what it costs."""

from sdvq_core import formats
from sdvq_core.version import __version__

__all__ = ["__version__", "formats"]
