"""What can go wrong, as a tree; every message says what would be accepted.

SdvqError
├── ConfigError      a setting, argument or recipe that is not allowed
├── LayerError       a layer that cannot be compressed (carries its name)
├── StoreError       an artifact, cache entry or file that cannot be read or written
├── ModelError       a base model that cannot be found, or is not of the SDXL family
└── Cancelled        the caller asked for the work to stop
"""

from __future__ import annotations


class SdvqError(Exception):
    """Base of every error that is the user's to mend; the CLI prints it in one line, the UI as a toast."""


class ConfigError(SdvqError, ValueError):
    """A value outside what is allowed."""


class LayerError(SdvqError):
    """A layer that cannot be compressed."""

    def __init__(self, layer: str, reason: str) -> None:
        super().__init__(f"layer {layer}: {reason}")
        self.layer = layer
        self.reason = reason

    def __reduce__(self) -> tuple[type[LayerError], tuple[str, str]]:
        return LayerError, (self.layer, self.reason)  # it comes back from other processes


class StoreError(SdvqError):
    """A stored artifact that is missing, damaged, foreign or newer than this program."""


class ModelError(SdvqError):
    """A base model that is missing or is not an SDXL pipeline."""


class Cancelled(SdvqError):
    """The work was stopped on request."""
