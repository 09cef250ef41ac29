"""Decode and search kernels: same numbers on every device, different speed. The torch reference runs everywhere."""

from sdvq_core.kernels.additive import additive_decode, additive_decode_reference, additive_scatter
from sdvq_core.kernels.choices import CHOICES
from sdvq_core.kernels.decode import affine_rows, codebook_decoder, codebook_rows, trellis_rows
from sdvq_core.kernels.fp8 import device_obstacle, fp8_products
from sdvq_core.kernels.hadamard import hadamard_block, rotate, scramble, unrotate
from sdvq_core.kernels.linear import Packed, linear
from sdvq_core.kernels.scratch import Rows, affine_nbytes, codebook_nbytes, trellis_nbytes
from sdvq_core.kernels.search import beam_search, beam_search_reference, chunks, nearest, nearest_reference
from sdvq_core.kernels.trellis import code_table, gaussian_code, trellis_decode
from sdvq_core.kernels.viterbi import viterbi, viterbi_reference
from sdvq_core.kernels.ways import way

__all__ = [
    "CHOICES",
    "Packed",
    "Rows",
    "additive_decode",
    "additive_decode_reference",
    "additive_scatter",
    "affine_nbytes",
    "affine_rows",
    "beam_search",
    "beam_search_reference",
    "chunks",
    "code_table",
    "codebook_decoder",
    "codebook_nbytes",
    "codebook_rows",
    "device_obstacle",
    "fp8_products",
    "gaussian_code",
    "hadamard_block",
    "linear",
    "nearest",
    "nearest_reference",
    "rotate",
    "scramble",
    "trellis_decode",
    "trellis_nbytes",
    "trellis_rows",
    "unrotate",
    "viterbi",
    "viterbi_reference",
    "way",
]
