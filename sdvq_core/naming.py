"""What a layer's name in a diffusers UNet says: its block, its role, and a short name for a plot's axis.

``down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q`` -> block ``down 1``, role ``self-attn q``.
"""

from __future__ import annotations

import re

_ROLES = (
    (r"attn1\.to_([qkv])$", r"self-attn \1"),
    (r"attn1\.to_out\.0$", "self-attn out"),
    (r"attn2\.to_([qkv])$", r"cross-attn \1"),
    (r"attn2\.to_out\.0$", "cross-attn out"),
    (r"ff\.net\.0\.proj$", "feed-forward in"),
    (r"ff\.net\.2$", "feed-forward out"),
    (r"proj_in$", "transformer in"),
    (r"proj_out$", "transformer out"),
    (r"resnets\.\d+\.conv1$", "conv 1"),
    (r"resnets\.\d+\.conv2$", "conv 2"),
    (r"resnets\.\d+\.conv_shortcut$", "shortcut"),
    (r"(?:down|up)samplers\.\d+\.conv$", "resample"),
)
ROLES = tuple(
    role.replace(r"\1", letter) for _, role in _ROLES for letter in (("q", "k", "v") if r"\1" in role else ("",))
)


def role_of(name: str) -> str:
    """What the layer does: one of `ROLES`, or the last part of its name."""
    for pattern, role in _ROLES:
        match = re.search(pattern, name)
        if match:
            return match.expand(role)
    return name.rpartition(".")[2]


def block_of(name: str) -> str:
    """Where the layer sits: ``down 0`` … ``mid`` … ``up 2``, or the first part of its name."""
    match = re.match(r"(down|up)_blocks\.(\d+)\.", name)
    if match:
        return f"{match[1]} {match[2]}"
    return "mid" if name.startswith("mid_block.") else name.partition(".")[0]


def short_name(name: str) -> str:
    """``down 1 · attentions.0.transformer_blocks.0 · self-attn q`` without what the role already says."""
    inner = re.sub(r"^(?:(?:down|up)_blocks\.\d+|mid_block)\.", "", name)
    where = re.match(r"(\w+?)s?\.(\d+)", inner)
    return f"{block_of(name)} · {where[1]} {where[2]} · {role_of(name)}" if where else name
