"""URL parameters -> settings. What is unknown or out of range is left at its default, and told in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from sdvq_core.errors import ConfigError, SdvqError
from sdvq_core.jobs import MAX_ARMS, Sampling
from sdvq_core.ui.settings import MAX_MORE, MAX_PROMPT, MOST_GUIDANCE, MOST_STEPS, Settings, split_arms

IGNORED = ("__theme", "__sign", "logs", "view", "__lang")  # the page's host and Gradio use these


@dataclass(frozen=True)
class Allowed:
    """What a link may name; the checks raise SdvqError on what is not there or does not fit the form."""

    check_model: Callable[[str], object]
    baselines: Collection[str]
    recipes: Collection[str]
    check_arm: Callable[[str], object]


def read_query(query: Mapping[str, str], defaults: Settings, allowed: Allowed) -> tuple[Settings, list[str]]:
    """Settings of `query` on top of `defaults`, and the names of parameters that were ignored."""
    settings, ignored = defaults, []
    for name, text in query.items():
        if name in IGNORED:
            continue
        try:
            settings = _READERS[name](settings, text, allowed)
        except (KeyError, ValueError, SdvqError):
            ignored.append(name)
    return settings, ignored


def _read_number(name: str, kind: type[int] | type[float]) -> Callable[[Settings, str, Allowed], Settings]:
    def read(settings: Settings, text: str, allowed: Allowed) -> Settings:
        value = kind(text)
        values = {"seed": settings.seed, "steps": settings.steps, "guidance": settings.guidance, name: value}
        Sampling("", **values)  # type: ignore[arg-type]
        if values["steps"] > MOST_STEPS or values["guidance"] > MOST_GUIDANCE:
            raise ConfigError("more than the page offers")
        return replace(settings, **{name: value})  # type: ignore[arg-type]

    return read


def _read_choice(name: str, choices: str, none: str = "") -> Callable[[Settings, str, Allowed], Settings]:
    def read(settings: Settings, text: str, allowed: Allowed) -> Settings:
        value = "" if text == none else text
        if value not in getattr(allowed, choices) and not (none and value == ""):
            raise ConfigError(f"unknown {name}")
        return replace(settings, **{name: value})  # type: ignore[arg-type]

    return read


def _read_prompt(settings: Settings, text: str, allowed: Allowed) -> Settings:
    if len(text) > MAX_PROMPT:
        raise ConfigError("too long")
    return replace(settings, prompt=text)


def _read_model(settings: Settings, text: str, allowed: Allowed) -> Settings:
    allowed.check_model(text)
    return replace(settings, model=text)


def _read_arm(settings: Settings, text: str, allowed: Allowed) -> Settings:
    allowed.check_arm(text)
    return replace(settings, arm=text)


def _read_more(settings: Settings, text: str, allowed: Allowed) -> Settings:
    if len(text) > MAX_MORE or len(split_arms(text)) > MAX_ARMS:
        raise ConfigError("too long")
    return replace(settings, more=text)


def _read_grid(settings: Settings, text: str, allowed: Allowed) -> Settings:
    if text not in ("0", "1"):
        raise ConfigError("grid is 0 or 1")
    return replace(settings, grid=text == "1")


_READERS: Mapping[str, Callable[[Settings, str, Allowed], Settings]] = {
    "model": _read_model,
    "prompt": _read_prompt,
    "seed": _read_number("seed", int),
    "steps": _read_number("steps", int),
    "guidance": _read_number("guidance", float),
    "baseline": _read_choice("baseline", "baselines", none="none"),
    "arm": _read_arm,
    "recipe": _read_choice("recipe", "recipes", none="none"),
    "more": _read_more,
    "grid": _read_grid,
}
