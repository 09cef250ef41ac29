"""The form: one widget per setting, knobs drawn from the catalogue; reads into Settings and is filled from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from sdvq_core.errors import ConfigError
from sdvq_core.jobs import ModelInfo
from sdvq_core.peers import PeerInfo
from sdvq_core.quantizers.base import Knob, QuantizerInfo, Value
from sdvq_core.ui.arm_words import AUTO, form_knobs, from_word, to_word
from sdvq_core.ui.bit_slider import bit_slider, read_bits, slider_value
from sdvq_core.ui.cost import LIVE
from sdvq_core.ui.settings import MOST_GUIDANCE, MOST_STEPS, Settings

BASELINES = (("4-bit scalar (RTN)", "rtn:bits=4"), ("4-bit NormalFloat (NF4)", "nf4"), ("None", ""))
FIELDS = (
    "prompt",
    "model",
    "seed",
    "steps",
    "guidance",
    "grid",
    "baseline",
    "quantizer",
    "bits",
    "recipe",
    "more",
    "live",
)


@dataclass(frozen=True)
class Form:
    """The widgets in a fixed order: `FIELDS`, then every quantizer's knobs."""

    catalogue: tuple[QuantizerInfo, ...]
    widgets: Mapping[str, Any]
    knobs: Mapping[tuple[str, str], Any]
    groups: Mapping[str, Any]

    @property
    def inputs(self) -> list[Any]:
        return [self.widgets[name] for name in FIELDS] + list(self.knobs.values())

    @property
    def outputs(self) -> list[Any]:
        """What `show` fills."""
        return self.inputs + list(self.groups.values())

    def read(self, values: Sequence[Any]) -> Settings:
        """Widget values -> settings; the records check ranges later, here only what the form itself needs."""
        given = dict(zip(FIELDS, values, strict=False))
        info = self.info(given["quantizer"])
        knobs = {
            name: value
            for (owner, name), value in zip(self.knobs, values[len(FIELDS) :], strict=True)
            if owner == info.name
        }
        return Settings(
            model=_text(given["model"]),
            prompt=_text(given["prompt"]),
            seed=_whole("seed", given["seed"]),
            steps=_whole("steps", given["steps"]),
            guidance=given["guidance"],
            baseline=_text(given["baseline"]),
            arm=to_word(info, read_bits(given["bits"]), knobs),
            recipe=_text(given["recipe"]),
            more=_text(given["more"]),
            grid=bool(given["grid"]),
            live=bool(given["live"]),
        )

    def show(self, settings: Settings) -> list[Any]:
        """Values for `outputs` that read back as `settings`."""
        arm = from_word(settings.arm, self.catalogue)
        info = self.info(arm.quantizer)
        values: dict[str, Any] = {name: getattr(settings, name, None) for name in FIELDS}
        values |= {"quantizer": arm.quantizer, "bits": slider_value(info.bit_widths, arm.bits)}
        knobs = []
        for owner, name in self.knobs:
            knob = self._knob(owner, name)
            chosen: Value | None = arm.knobs.get(name) if owner == arm.quantizer else None
            knobs.append(_resting(knob) if chosen is None else chosen)
        return [values[name] for name in FIELDS] + knobs + self.visible(arm.quantizer)

    def visible(self, quantizer: str) -> list[Any]:
        """Show only the knobs of `quantizer`; updates for `groups`."""
        return [gr.update(visible=name == quantizer) for name in self.groups]

    def info(self, name: object) -> QuantizerInfo:
        found = next((info for info in self.catalogue if info.name == name), None)
        if found is None:
            raise ConfigError(f"unknown quantizer {name!r}; choose one of {', '.join(i.name for i in self.catalogue)}")
        return found

    def _knob(self, owner: str, name: str) -> Knob:
        return next(knob for knob in self.info(owner).knobs if knob.name == name)


def draw_arms(
    models: Sequence[ModelInfo],
    catalogue: Sequence[QuantizerInfo],
    peers: Sequence[PeerInfo],
    recipes: Sequence[Any],
    start: Settings,
) -> tuple[dict[str, Any], dict[tuple[str, str], Any], dict[str, Any]]:
    """Model and arms: widgets by field, knobs by (quantizer, knob), one group of knobs per quantizer."""
    arm = from_word(start.arm, catalogue)
    info = next(item for item in catalogue if item.name == arm.quantizer)
    known = {item.name for item in catalogue}
    baselines = [(label, word) for label, word in BASELINES if not word or word.partition(":")[0] in known]
    baselines += [(f"4-bit {peer.label}", f"{peer.name}:bits=4") for peer in peers if peer.installed]
    names = [(item.label, item.name) for item in catalogue]
    found: dict[str, Any] = {}
    at_hand = [(_model_label(model), model.name) for model in models]
    found["model"] = gr.Dropdown(
        at_hand, value=start.model, label="Model", interactive=True, allow_custom_value=True, elem_id="model"
    )
    found["baseline"] = gr.Dropdown(baselines, value=start.baseline, label="Scalar baseline", interactive=True)
    found["quantizer"] = gr.Dropdown(names, value=arm.quantizer, label="Quantizer", interactive=True, info=info.summary)
    found["bits"] = bit_slider(info.bit_widths, arm.bits)
    with gr.Accordion("Quantizer settings", open=False, elem_id="knobs"):
        knobs, groups = _draw_knobs(catalogue, arm.quantizer)
    with gr.Accordion("More arms", open=False, elem_id="more-arms"):
        found["recipe"] = gr.Dropdown(
            recipe_choices(recipes), value=start.recipe, label="Recipe", interactive=True, elem_id="recipe"
        )
        found["more"] = gr.Textbox(
            label="Arms, one per line", lines=2, placeholder="kmeans:bits=2\nnf4:block_size=32", interactive=True,
            info="Words of the command line, or an artifact's folder.",
        )  # fmt: skip
    return found, knobs, groups


def recipe_choices(recipes: Sequence[Any], states: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
    """The recipes of the menu; states: of their arms, where known."""
    known = states or {}
    ends = {recipe.arm: f" · {known[recipe.arm]}" if recipe.arm in known else "" for recipe in recipes}
    return [("None", ""), *((recipe.label + ends[recipe.arm], recipe.arm) for recipe in recipes)]


def draw_sampling(start: Settings, asks: bool = False) -> dict[str, Any]:
    """Seed, steps, guidance; with `asks`, whether to compress what is not ready."""
    found: dict[str, Any] = {}
    found["live"] = gr.Checkbox(start.live, label=LIVE, interactive=True, visible=asks, elem_id="live")
    with gr.Row(elem_classes="seed-row"):
        found["seed"] = gr.Number(start.seed, label="Seed", precision=0, minimum=0, interactive=True, min_width=90)
        found["dice"] = gr.Button("⚄ New", size="sm", min_width=60, elem_id="dice", elem_classes="dice")
    found["locked"] = gr.Checkbox(True, label="Keep this seed", interactive=True)
    found["grid"] = gr.Checkbox(start.grid, label="Four seeds in a row", interactive=True)
    found["steps"] = gr.Slider(1, MOST_STEPS, start.steps, step=1, label="Steps", interactive=True)
    found["guidance"] = gr.Slider(0, MOST_GUIDANCE, start.guidance, step=0.1, label="Guidance", interactive=True)
    return found


def _draw_knobs(catalogue: Sequence[QuantizerInfo], chosen: str) -> tuple[dict[tuple[str, str], Any], dict[str, Any]]:
    knobs: dict[tuple[str, str], Any] = {}
    groups: dict[str, Any] = {}
    for info in catalogue:
        with gr.Column(visible=info.name == chosen, elem_classes="knob-group") as groups[info.name]:
            for knob in form_knobs(info):
                knobs[info.name, knob.name] = _widget(knob)
            if not form_knobs(info):
                gr.Markdown("Nothing to set.")
    return knobs, groups


def _widget(knob: Knob) -> Any:
    if knob.choices:
        choices = [("automatic", AUTO), *((str(value), value) for value in knob.choices if value != AUTO)]
        return gr.Dropdown(choices, value=AUTO, label=knob.label, interactive=True)
    if knob.low is not None and knob.high is not None:
        step = 1 if isinstance(knob.default, int) else (knob.high - knob.low) / 100
        return gr.Slider(knob.low, knob.high, knob.default, step=step, label=knob.label, interactive=True)
    kind = gr.Textbox if isinstance(knob.default, str) else gr.Number
    return kind(knob.default, label=knob.label, interactive=True)


def _resting(knob: Knob) -> Value:
    return AUTO if knob.choices else knob.default


def _model_label(model: ModelInfo) -> str:
    return model.label if model.at_hand else f"{model.label} (needs a download)"


def _text(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ConfigError(f"expected text, got {value!r}")
    return value


def _whole(name: str, value: object) -> int:
    """A slider or a number box sends 20.0 for 20; anything else that is not whole is refused."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise ConfigError(f"{name} must be a whole number, got {value!r}")
    return int(value)
