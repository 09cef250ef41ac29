"""Colours and type of the page; fonts come from the server itself or the system, never from outside."""

from __future__ import annotations

from typing import Any

import gradio as gr

_FONTS = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"]


def theme() -> Any:
    """A quiet grey page with one blue accent, the first colour of the plots."""
    blue = gr.themes.Color(
        name="sdvq", c50="#eef6fb", c100="#d6e9f5", c200="#aed3eb", c300="#7db7dc", c400="#4097c9", c500="#0b7bbd",
        c600="#0072b2", c700="#005c91", c800="#064a73", c900="#0a3d5e", c950="#06273d",
    )  # fmt: skip
    base = gr.themes.Base(
        primary_hue=blue,
        secondary_hue=blue,
        neutral_hue="zinc",
        radius_size="md",
        spacing_size="sm",
        font=[gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)), *_FONTS],
        font_mono=[gr.themes.LocalFont("IBM Plex Mono", weights=(400, 600)), "ui-monospace", "monospace"],
    )
    return base.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        block_label_text_color="*neutral_600",
        block_label_text_color_dark="*neutral_300",
        block_title_text_color="*neutral_600",
        block_title_text_color_dark="*neutral_300",
        block_shadow="none",
        block_border_width="1px",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_border_width="0px",
        block_label_text_size="*text_sm",
        block_title_text_size="*text_sm",
        block_title_text_weight="400",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="white",
        button_transition="background 120ms",
        input_background_fill="white",
        input_background_fill_dark="*neutral_900",
        input_border_width="1px",
        slider_color="*primary_600",
    )
