"""What other libraries need to know of us. `hook` makes diffusers read artifacts without importing diffusers itself."""

from sdvq_core.integrations.hook import install

__all__ = ["install"]
