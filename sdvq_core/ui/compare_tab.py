"""The Compare tab: prompt on top, the form at the left, pictures at the right."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from sdvq_core.errors import ConfigError, SdvqError
from sdvq_core.jobs import Estimate
from sdvq_core.ui.arm_words import from_word
from sdvq_core.ui.bit_slider import slider_value
from sdvq_core.ui.board import interrupted
from sdvq_core.ui.compare_view import compare_view, serve_png
from sdvq_core.ui.controls import Form, draw_arms, draw_sampling, recipe_choices
from sdvq_core.ui.cost import cost_html, state
from sdvq_core.ui.guard import friendly
from sdvq_core.ui.links import Allowed, read_query
from sdvq_core.ui.run import Run, model_named
from sdvq_core.ui.settings import REFERENCE, Settings, share_link
from sdvq_core.ui.sizes import sizes_html, sizes_table
from sdvq_core.ui.status_line import status, status_line
from sdvq_core.ui.stopping import JS_STOPPING, Stops
from sdvq_core.ui.zero_gpu import on_gpu

GPU = {"concurrency_id": "gpu", "concurrency_limit": 1}
QUIET = {"api_visibility": "private", "show_progress": "hidden"}
DICE_SIDES = 100_000
_TO_PICTURES = (
    "(...values) => { if (innerWidth < 800) document.querySelector('#status')?.scrollIntoView({block: 'start'}); }"
)
_ABSOLUTE = "link => new URL(link, location.origin + location.pathname).href"
_COPY = "link => { navigator.clipboard?.writeText(link); }"


@dataclass(frozen=True)
class CompareTab:
    """The tab's widgets, and the handlers behind them as plain functions."""

    workbench: Any
    start: Settings
    form: Form
    parts: dict[str, Any]

    def generate(self, locked: bool, *values: Any) -> Iterator[list[Any]]:
        """States of [view, status, stop, seed, last]."""
        settings = self.form.read(values)
        if not locked:
            settings = replace(settings, seed=secrets.randbelow(DICE_SIDES))
        run = Run(self.workbench, settings, lambda path: serve_png(self.parts["view"], path), gr.Warning)
        for frame in run.frames():
            last = gr.skip() if frame.finished is None else frame.finished
            seed = gr.skip() if locked else settings.seed
            yield [frame.view, frame.status, gr.update(interactive=frame.running), seed, last]

    def stopped(self, frame: list[Any]) -> list[Any]:
        """The last state of a run that was stopped in `frame`, one of `generate`."""
        if frame[1]["state"] != "busy":
            return frame  # it had come to its end
        told = status("stopped", "Stopped", "Nothing is running. What was finished is kept.")
        return [interrupted(frame[0]), told, gr.update(interactive=False), *frame[3:]]

    def price(self, *values: Any) -> list[Any]:
        """[sizes, link] of the form as it stands; mistakes are told in the table, not in a toast per key stroke."""
        try:
            settings = self.form.read(values)
            items = [self._estimate(settings.model, arm) for arm in settings.arms]
            return [sizes_html(items) + cost_html(items, settings.live), share_link(settings.to_query())]
        except SdvqError as error:
            return [sizes_html([error]), gr.skip()]

    def label_recipes(self, model: str) -> Any:
        """The menu of recipes, each with its state on `model`: ready, or how long it takes."""
        recipes, states = self.workbench.recipes(), {}
        for recipe in recipes:
            found = self._estimate(model, recipe.arm)
            states[recipe.arm] = state(found) if isinstance(found, Estimate) else "not for this model"
        return gr.update(choices=recipe_choices(recipes, states))

    def settled(self, *values: Any) -> list[Any]:
        """[last, recipes] once the form is restored: what can be looked at, and what is ready."""
        return [self.at_hand(*values), self._recipes(values)]

    def worked(self, *values: Any) -> list[Any]:
        """[sizes, recipes] after work was done."""
        return [self.reprice(*values), self._recipes(values)]

    def _recipes(self, values: Sequence[Any]) -> Any:
        try:
            return self.label_recipes(self.form.read(values).model)
        except SdvqError:
            return gr.skip()

    def seconds(self, locked: bool, *values: Any) -> float:
        """How long `generate` will take; a form that it will refuse takes none."""
        try:
            return float(self.workbench.job_seconds(*self.form.read(values).jobs))
        except SdvqError:
            return 0.0

    def reprice(self, *values: Any) -> Any:
        """The sizes once more, after work was done."""
        return self.price(*values)[0]

    def at_hand(self, *values: Any) -> tuple[str, tuple[str, ...]] | None:
        """(model, arms) of the form that are compressed already, so that their layers show before any comparison."""
        try:
            settings = self.form.read(values)
            arms = [arm for arm in settings.arms if self.workbench.report(settings.model, arm)]
        except SdvqError:
            return None
        return (settings.model, tuple(arms)) if arms else None

    def choose_quantizer(self, name: str, bits: Any) -> list[Any]:
        """[quantizer, bits, groups…] after another quantizer was chosen; keeps the bits where it offers them."""
        info = self.form.info(name)
        wanted = bits.get("bits", 0) if isinstance(bits, dict) else 0
        return [gr.update(info=info.summary), slider_value(info.bit_widths, wanted), *self.form.visible(name)]

    def choose_model(self, name: str) -> list[Any]:
        """[steps, guidance] that suit the model, where that is known."""
        model = model_named(self.workbench, name)
        return [model.steps, model.guidance] if model else [gr.skip(), gr.skip()]

    def restore(self, request: gr.Request) -> list[Any]:
        """The form as the page's address says; what it cannot say is left at its default."""
        query = {name: str(text) for name, text in dict(request.query_params).items()} if request else {}
        settings, ignored = read_query(query, self.start_for(query.get("model", "")), self._allowed())
        if ignored:
            gr.Warning(f"The link's {', '.join(sorted(ignored))} could not be used; the default is shown instead.")
        return self.form.show(settings)

    def describe(self, name: str) -> Any:
        """The quantizer's menu with the summary of the one it shows."""
        return gr.update(info=self.form.info(name).summary)

    def start_for(self, model: str) -> Settings:
        """The defaults, with the steps and guidance of the model that a link names."""
        found = model_named(self.workbench, model)
        return replace(self.start, steps=found.steps, guidance=found.guidance) if found else self.start

    def _allowed(self) -> Allowed:
        baselines = [word for _, word in self.form.widgets["baseline"].choices if word]
        recipes = [recipe.arm for recipe in self.workbench.recipes()]
        return Allowed(self._check_model, baselines, recipes, lambda word: from_word(word, self.form.catalogue))

    def _check_model(self, name: str) -> None:
        """A name from the menu, or any model whose size can be told."""
        if model_named(self.workbench, name) is None:
            self.workbench.estimate(name, REFERENCE)

    def _estimate(self, model: str, arm: str) -> Estimate | SdvqError:
        try:
            return self.workbench.estimate(model, arm)  # type: ignore[no-any-return]
        except SdvqError as error:
            return error


def defaults(workbench: Any) -> Settings:
    """What a first visitor finds: the bundled model, a prompt that suits it, 4-bit scalar against 3-bit residual VQ."""
    model = workbench.models()[0]
    prompts = workbench.prompts()
    names = {info.name for info in workbench.quantizers()}
    if "rtn" not in names:
        raise ConfigError("the page needs the quantizer rtn")
    arm = "rvq:bits=3" if "rvq" in names else "rtn:bits=3"
    prompt = prompts[0] if prompts else "a frog on a blue background"
    return Settings(model.name, prompt, 0, model.steps, model.guidance, arm=arm, live=not workbench.asks_first)


def draw_compare(workbench: Any) -> CompareTab:
    """Lay out the tab and connect it."""
    start = defaults(workbench)
    catalogue = tuple(workbench.quantizers())
    parts: dict[str, Any] = {}
    with gr.Row(elem_classes="prompt-row", equal_height=True):
        prompt = gr.Textbox(
            start.prompt, label="Prompt", lines=2, max_lines=4, max_length=2000, scale=5, interactive=True,
        )  # fmt: skip
        with gr.Column(scale=1, min_width=150, elem_classes="run-buttons"):
            parts["go"] = gr.Button("Generate", variant="primary", elem_id="generate")
            parts["stop"] = gr.Button("Stop", variant="stop", interactive=False, elem_id="stop")
    with gr.Row(elem_classes="examples"):
        parts["examples"] = [gr.Button(text, size="sm", elem_classes="example") for text in workbench.prompts()[:5]]
    with gr.Row(elem_classes="workspace"):
        with gr.Column(scale=0, min_width=316, elem_classes="settings"):
            widgets, knobs, groups = draw_arms(
                workbench.models(), catalogue, workbench.peers(), workbench.recipes(), start
            )
            parts["sizes"] = sizes_table()
            widgets |= draw_sampling(start, workbench.asks_first) | {"prompt": prompt}
            parts["link"] = gr.Textbox(
                label="Link to these settings", interactive=False, lines=1, max_lines=1, elem_id="link"
            )
            parts["copy"] = gr.Button("Copy link", size="sm", elem_id="copy-link")
        with gr.Column(scale=1, min_width=320, elem_classes="pictures"):
            parts["status"] = status_line()
            parts["view"] = compare_view()
    parts["last"] = gr.State(None)
    tab = CompareTab(workbench, start, Form(catalogue, widgets, knobs, groups), parts)
    _connect(tab)
    return tab


def _connect(tab: CompareTab) -> None:
    form, parts = tab.form, tab.parts
    widgets = form.widgets
    outputs = [parts["view"], parts["status"], parts["stop"], widgets["seed"], parts["last"]]
    stops = Stops()
    parts["go"].click(None, None, None, js=_TO_PICTURES, **QUIET)  # first: what follows waits for the end of the run
    generate = stops.stoppable(on_gpu(friendly(tab.generate), tab.seconds), tab.stopped)
    job = gr.on(
        [parts["go"].click, widgets["prompt"].submit], generate, [widgets["locked"], *form.inputs], outputs,
        show_progress_on=[parts["status"]], trigger_mode="once", **QUIET, **GPU,
    )  # fmt: skip
    job.then(tab.worked, form.inputs, [parts["sizes"], widgets["recipe"]], **QUIET)
    parts["stop"].click(stops.ask, None, parts["stop"], queue=False, js=JS_STOPPING, **QUIET)
    groups = list(form.groups.values())
    widgets["quantizer"].input(
        friendly(tab.choose_quantizer), [widgets["quantizer"], widgets["bits"]],
        [widgets["quantizer"], widgets["bits"], *groups], **QUIET,
    )  # fmt: skip
    widgets["model"].input(
        friendly(tab.choose_model), widgets["model"], [widgets["steps"], widgets["guidance"]], **QUIET
    )
    widgets["model"].input(tab.label_recipes, widgets["model"], widgets["recipe"], **QUIET)
    widgets["dice"].click(lambda: secrets.randbelow(DICE_SIDES), None, widgets["seed"], **QUIET)
    for button in parts["examples"]:
        button.click(lambda text: text, button, widgets["prompt"], **QUIET)
    price = {"fn": tab.price, "inputs": form.inputs, "outputs": [parts["sizes"], parts["link"]], **QUIET}
    absolute = {"fn": None, "inputs": parts["link"], "outputs": parts["link"], "js": _ABSOLUTE, **QUIET}
    changes = [widget.change for widget in form.inputs]
    gr.on(changes, trigger_mode="always_last", **price).then(**absolute)
    parts["copy"].click(None, parts["link"], None, js=_COPY, **QUIET)
    parts["price"], parts["absolute"] = price, absolute
