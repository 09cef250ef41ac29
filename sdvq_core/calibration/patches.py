"""What a layer multiplies its weight rows with: input -> rows [R, n], n = I * T, in the order of `grouping.to_rows`.

A row is one output position: for a convolution the T taps of I channels that its kernel sees there, taps outermost.
Positions are numbered image by image, then row by row of the output. Only the rows asked for are unfolded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdvq_core.errors import LayerError

Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """How a convolution looks at its input, (vertical, horizontal). padding: zeros added (left, right, top, bottom).

    A Linear has the window `None`: its rows are the last dimension of its input.
    """

    kernel: Pair
    stride: Pair
    dilation: Pair
    padding: tuple[int, int, int, int]

    def output(self, height: int, width: int) -> Pair:
        """(rows, columns) of output positions of an unpadded input."""
        left, right, top, bottom = self.padding
        return (
            (height + top + bottom - self.dilation[0] * (self.kernel[0] - 1) - 1) // self.stride[0] + 1,
            (width + left + right - self.dilation[1] * (self.kernel[1] - 1) - 1) // self.stride[1] + 1,
        )


def window_of(name: str, layer: nn.Module) -> Window | None:
    """The window of a layer; None for a Linear."""
    if isinstance(layer, nn.Linear):
        return None
    if not isinstance(layer, nn.Conv2d):
        raise LayerError(name, f"is a {type(layer).__name__}; statistics are gathered for Linear and Conv2d")
    if layer.groups != 1 or layer.padding_mode != "zeros":
        raise LayerError(name, "grouped convolutions and padding other than zeros are not supported")
    kernel, dilation = _pair(layer.kernel_size), _pair(layer.dilation)
    return Window(kernel, _pair(layer.stride), dilation, _padding(layer.padding, kernel, dilation))


def row_count(inputs: Tensor, window: Window | None) -> int:
    """R: inputs [.., I] or [B, I, h, w] -> number of output positions."""
    if window is None:
        return inputs.shape[:-1].numel()
    high, wide = window.output(*inputs.shape[2:])
    return inputs.shape[0] * high * wide


def input_rows(inputs: Tensor, window: Window | None, picks: Tensor | None = None) -> Tensor:
    """inputs [.., I] or [B, I, h, w] -> rows [R, n] in float32; picks: numbers of the rows wanted, default all."""
    if window is None:
        rows = inputs.reshape(-1, inputs.shape[-1])  # [R, I]
        return (rows if picks is None else rows[picks]).float()
    high, wide = window.output(*inputs.shape[2:])
    where = torch.arange(len(inputs) * high * wide, device=inputs.device) if picks is None else picks
    image, y, x = where // (high * wide), where // wide % high, where % wide  # [R]
    down = torch.arange(window.kernel[0], device=inputs.device) * window.dilation[0]  # [kh]
    across = torch.arange(window.kernel[1], device=inputs.device) * window.dilation[1]  # [kw]
    pixels = nn.functional.pad(inputs, window.padding).permute(0, 2, 3, 1)  # [B, h, w, I]
    patches = pixels[
        image[:, None, None],
        (y * window.stride[0])[:, None, None] + down[:, None],
        (x * window.stride[1])[:, None, None] + across,
    ]  # [R, kh, kw, I]
    return patches.reshape(len(where), -1).float()  # [R, n]


def _pair(values: tuple[int, ...]) -> Pair:
    return (int(values[0]), int(values[1]))


def _padding(padding: str | tuple[int, ...], kernel: Pair, dilation: Pair) -> tuple[int, int, int, int]:
    if padding == "same":
        high, wide = (d * (k - 1) for k, d in zip(kernel, dilation, strict=True))
        return (wide // 2, wide - wide // 2, high // 2, high - high // 2)
    if isinstance(padding, str):  # "valid"
        return (0, 0, 0, 0)
    return (int(padding[1]), int(padding[1]), int(padding[0]), int(padding[0]))
