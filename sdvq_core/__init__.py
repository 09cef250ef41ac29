"""SDVQ: vector quantization of text-to-image diffusion models, and what it costs.

Importing this package is light; it also makes diffusers load SDVQ artifacts: after `import sdvq_core`,
`UNet2DConditionModel.from_pretrained(ARTIFACT)` works by itself.
"""

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if find_spec("torch") is None:
    raise ModuleNotFoundError(
        "SDVQ needs torch and what else requirements.txt names: pip install -r requirements.txt or, after `make demo`, "
        "source .venv/bin/activate"
    )

from sdvq_core import formats, integrations
from sdvq_core.compress import compress
from sdvq_core.plan import CompressionPlan, Rule
from sdvq_core.quantizers import catalogue, make
from sdvq_core.version import __version__

if TYPE_CHECKING:
    from sdvq_core.integrations.diffusers import SdvqConfig
    from sdvq_core.integrations.loading import load_artifact
    from sdvq_core.workbench import Workbench

__all__ = [
    "CompressionPlan",
    "Rule",
    "SdvqConfig",
    "Workbench",
    "__version__",
    "catalogue",
    "compress",
    "formats",
    "load_artifact",
    "make",
]

_HEAVY = {
    "SdvqConfig": "sdvq_core.integrations.diffusers",
    "Workbench": "sdvq_core.workbench",
    "load_artifact": "sdvq_core.integrations.loading",
}


def _on_load(recipe: str, keep: Sequence[str]) -> Any:
    """What compresses a model while diffusers loads it; its room is imported now, above the rooms that only read."""
    return import_module("sdvq_core.on_load").OnLoad(recipe, keep)


integrations.install(_on_load)


def __getattr__(name: str) -> Any:
    """Public names whose rooms import diffusers are imported when they are first used."""
    if name not in _HEAVY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HEAVY[name]), name)
