"""Names and shapes of the original SDXL single-file layout, and of each diffusers tensor in it.

One rule table per part, read in both directions: loading a single file looks up where a tensor lies (`where`), writing
one puts tensors there (`placed`). Most are only renamed; OpenCLIP stores query, key and value as one array and the
projection transposed, the VAE's attention as 1x1 convolutions. L resnets per block, D blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PREFIX = {  # of each part in the file
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "conditioner.embedders.0.transformer.text_model.",
    "text_encoder_2": "conditioner.embedders.1.model.",
}

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE = (
    (r"conv_shortcut", "nin_shortcut"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    (r"down_blocks\.(\d+)\.resnets", r"down.\1.block"),
    (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
    (r"conv_norm_out", "norm_out"),
)
_OPENCLIP = (
    (r"^embeddings\.token_embedding", "token_embedding"),
    (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^final_layer_norm", "ln_final"),
    (r"^text_projection\.weight", "text_projection"),
    (r"^encoder\.layers", "transformer.resblocks"),
    (r"layer_norm", "ln_"),
    (r"mlp\.fc1", "mlp.c_fc"),
    (r"mlp\.fc2", "mlp.c_proj"),
    (r"self_attn\.out_proj", "attn.out_proj"),
    (r"self_attn\.[qkv]_proj\.", "attn.in_proj_"),
)


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a single file. third: which of query, key, value of an array that holds all three.

    turned: stored transposed. pixel: a matrix [O, I] stored as a convolution [O, I, 1, 1].
    """

    name: str
    third: int | None = None
    turned: bool = False
    pixel: bool = False

    def take(self, stored: Tensor) -> Tensor:
        """The tensor out of what is stored: a view."""
        if self.third is not None:
            return stored.chunk(3)[self.third]
        if self.turned:
            return stored.T
        return stored.reshape(stored.shape[:2]) if self.pixel else stored  # [O, I]

    def put(self, parts: Sequence[Tensor]) -> Tensor:
        """What is stored, of the tensors that share this place, by `third`."""
        if self.third is not None:
            return torch.cat(tuple(parts))
        (tensor,) = parts
        if self.turned:
            return tensor.T
        return tensor[:, :, None, None] if self.pixel else tensor  # [O, I, 1, 1]

    def stored_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape in the file of a tensor of `shape`."""
        if self.third is not None:
            return (3 * shape[0], *shape[1:])
        if self.turned:
            return tuple(reversed(shape))
        return (*shape, 1, 1) if self.pixel else tuple(shape)


def where(part: str, name: str, config: Mapping[str, Any]) -> Place:
    """Where the file keeps tensor `name` of a diffusers component; `config` is the component's."""
    place = _PLACES[part](name.removeprefix("text_model."), config)
    return Place(PREFIX[part] + place.name, place.third, place.turned, place.pixel)


def placed(part: str, names: Iterable[str], config: Mapping[str, Any]) -> dict[str, list[tuple[str, Place]]]:
    """Stored name -> the (name, place) of the tensors that it is made of, in order."""
    found: dict[str, list[tuple[str, Place]]] = {}
    for name in names:
        place = where(part, name, config)
        found.setdefault(place.name, []).append((name, place))
    return {stored: sorted(parts, key=lambda item: item[1].third or 0) for stored, parts in found.items()}


def _unet(name: str, config: Mapping[str, Any]) -> Place:
    owner, _, kind = name.rpartition(".")
    if owner in _UNET:
        return Place(f"{_UNET[owner]}.{kind}")
    per_block = int(config["layers_per_block"]) + 1
    parts = name.split(".")
    if parts[0] == "mid_block":
        return Place(_inside(f"middle_block.{2 * int(parts[2]) if parts[1] == 'resnets' else 1}", parts[1], parts[3:]))
    block, kind, number, rest = int(parts[1]), parts[2], int(parts[3]), parts[4:]
    if kind == "downsamplers":
        return Place(f"input_blocks.{(block + 1) * per_block}.0.op.{rest[-1]}")
    if kind == "upsamplers":
        beside = "CrossAttn" in config["up_block_types"][block]
        return Place(f"output_blocks.{(block + 1) * per_block - 1}.{2 if beside else 1}.conv.{rest[-1]}")
    first = 1 if parts[0] == "down_blocks" else 0
    side = "input_blocks" if first else "output_blocks"
    index = first + block * per_block + number
    return Place(_inside(f"{side}.{index}.{0 if kind == 'resnets' else 1}", kind, rest))


def _inside(place: str, kind: str, rest: Sequence[str]) -> str:
    """The tensor `rest` within a resnet or an attention block."""
    return ".".join([place, _RESNET[rest[0]], *rest[1:]] if kind == "resnets" else [place, *rest])


def _vae(name: str, config: Mapping[str, Any]) -> Place:
    deepest = len(config["block_out_channels"]) - 1
    pixel = ".attentions." in name and name.endswith("weight") and "norm" not in name
    name = _replaced(name, _VAE)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    name = re.sub(r"up_blocks\.(\d+)\.", lambda found: f"up.{deepest - int(found[1])}.", name)
    return Place(name.replace(".resnets.", ".block.").replace("upsamplers.0", "upsample"), pixel=pixel)


def _clip(name: str, _: Mapping[str, Any]) -> Place:
    return Place(name)


def _openclip(name: str, _: Mapping[str, Any]) -> Place:
    third = re.search(r"self_attn\.([qkv])_proj", name)
    number = None if third is None else "qkv".index(third[1])
    return Place(_replaced(name, _OPENCLIP), number, turned=name == "text_projection.weight")


def _replaced(name: str, rules: Sequence[tuple[str, str]]) -> str:
    for pattern, other in rules:
        name = re.sub(pattern, other, name)
    return name


_PLACES = {"unet": _unet, "vae": _vae, "text_encoder": _clip, "text_encoder_2": _openclip}
