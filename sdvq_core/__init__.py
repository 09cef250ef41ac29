"""SDVQ: vector quantization of text-to-image diffusion models, and what it costs.

Importing this package is light; it also makes diffusers load SDVQ artifacts: after `import sdvq_core`,
`UNet2DConditionModel.from_pretrained(ARTIFACT)` works by itself.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sdvq_core import formats, integrations
from sdvq_core.compress import compress
from sdvq_core.plan import CompressionPlan, Rule
from sdvq_core.quantizers import catalogue, make
from sdvq_core.version import __version__

if TYPE_CHECKING:
    from sdvq_core.integrations.loading import load_artifact
    from sdvq_core.workbench import Workbench

__all__ = [
    "CompressionPlan",
    "Rule",
    "Workbench",
    "__version__",
    "catalogue",
    "compress",
    "formats",
    "load_artifact",
    "make",
]

_HEAVY = {"Workbench": "sdvq_core.workbench", "load_artifact": "sdvq_core.integrations.loading"}

integrations.install()


def __getattr__(name: str) -> Any:
    """Public names whose rooms import diffusers are imported when they are first used."""
    if name not in _HEAVY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HEAVY[name]), name)
