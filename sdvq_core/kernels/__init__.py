"""Decode kernels: same numbers on every device, different speed. The torch reference runs everywhere."""

from sdvq_core.kernels.reference import additive_decode

__all__ = ["additive_decode"]
