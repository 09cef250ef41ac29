"""Suite `gpu`: decoding, whole steps, memory and quantizing at SDXL's size on a CUDA GPU, random weights.

Sections are independent: what fails is a row with its reason, and the next section goes on. The most wanted come first,
since a borrowed GPU may be taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch

from sdvq_core.bench.gpu_clock import CUDA
from sdvq_core.bench.gpu_decode import beside_peers, beside_the_idiom, decode_layers, other_formats
from sdvq_core.bench.gpu_encode import quantize_aq, quantize_rvq, quantize_tcq
from sdvq_core.bench.gpu_setting import Setting
from sdvq_core.bench.gpu_steps import large_steps, small_steps
from sdvq_core.bench.timing import Row
from sdvq_core.diffusion.sdxl_config import sdxl_unet_config
from sdvq_core.errors import ConfigError

Section = Callable[[Setting], Iterator[Row]]

SECTIONS: dict[str, Section] = {
    "decode, all layers": decode_layers,
    "decode beside the torch idiom": beside_the_idiom,
    "step, 1024 px": large_steps,
    "step, 512 px": small_steps,
    "quantize rvq": quantize_rvq,
    "quantize tcq": quantize_tcq,
    "quantize aq": quantize_aq,
    "decode, other formats": other_formats,
    "decode beside peers": beside_peers,
}


def gpu() -> Iterator[Row]:
    """Every section at full size, on the current CUDA device."""
    require_cuda()
    device = torch.device("cuda", torch.cuda.current_device())
    return run_sections(SECTIONS, Setting(device, CUDA, sdxl_unet_config(128)))


def run_sections(sections: Mapping[str, Section], setting: Setting) -> Iterator[Row]:
    """The rows of all sections; one that raises ends with a row that says why."""
    for name, section in sections.items():
        try:
            yield from _without_gradients(section(setting))
        except Exception as error:  # whatever it was, the other sections can still be measured
            reason = (str(error).splitlines() or [""])[0]
            yield Row("gpu", name, note=f"failed, {type(error).__name__}: {reason}")
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()


def _without_gradients(rows: Iterator[Row]) -> Iterator[Row]:
    """`rows`, made without gradients; whoever takes them keeps his own setting."""
    while True:
        with torch.no_grad():
            row = next(rows, None)
        if row is None:
            return
        yield row


def require_cuda() -> None:
    """ConfigError where there is no CUDA device."""
    if not torch.cuda.is_available():
        raise ConfigError("the suite gpu needs a CUDA device, and torch sees none; choose another suite")
