"""Settings, arm words and links: what a visitor chose survives the way to the URL and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import parse_qsl

import pytest

from sdvq_core.errors import ConfigError
from sdvq_core.jobs import MAX_SEED
from sdvq_core.quantizers.base import catalogue, make, parse
from sdvq_core.ui.arm_words import from_word, to_word
from sdvq_core.ui.links import Allowed, read_query
from sdvq_core.ui.settings import MOST_GUIDANCE, MOST_STEPS, Settings, share_link, split_arms

START = Settings("nano", "a frog")
CATALOGUE = catalogue()
INFO = {info.name: info for info in CATALOGUE}


def allowed() -> Allowed:
    models = ("nano", "sdxl")

    def check_model(name: str) -> None:
        if name not in models:
            raise ConfigError(f"unknown model {name!r}")

    return Allowed(check_model, ("rtn:bits=4", "nf4"), ("@preview",), lambda word: from_word(word, CATALOGUE))


def test_reference_comes_first_and_every_arm_once() -> None:
    settings = replace(START, recipe="@preview", more="fp16; nf4\nrtn:bits=4,group_size=64, nf4")
    assert settings.arms == ("fp16", "rtn:bits=4", "rvq:bits=3", "@preview", "nf4", "rtn:bits=4,group_size=64")
    assert replace(START, baseline="").arms == ("fp16", "rvq:bits=3")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ()),
        ("nf4,rtn:bits=2", ("nf4", "rtn:bits=2")),
        ("rtn:bits=2,group_size=32,nf4", ("rtn:bits=2,group_size=32", "nf4")),
        (" a b \n\n ;@preview ", ("a b", "@preview")),
    ],
)
def test_arms_are_split_but_knobs_stay_together(text: str, words: tuple[str, ...]) -> None:
    assert split_arms(text) == words


def test_grid_is_four_jobs_with_neighbouring_seeds() -> None:
    jobs = replace(START, seed=7, grid=True).jobs
    assert [job.sampling.seed for job in jobs] == [7, 8, 9, 10]
    assert len({job.arms for job in jobs}) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": -1},
        {"seed": MAX_SEED, "grid": True},
        {"steps": 0},
        {"guidance": "4"},
        {"prompt": 3},
        {"prompt": "x" * 3000},
    ],
)
def test_jobs_refuse_what_an_api_may_send(changes: Mapping[str, object]) -> None:
    with pytest.raises(ConfigError):
        _ = replace(START, **changes).jobs  # type: ignore[arg-type]


@pytest.mark.parametrize("name", INFO)
def test_each_width_of_each_quantizer_round_trips(name: str) -> None:
    for bits in INFO[name].bit_widths:
        word = to_word(INFO[name], bits, {})
        form = from_word(word, CATALOGUE)
        assert (form.quantizer, form.bits, form.knobs) == (name, bits, {})
        assert parse(word) == make({"name": name, "bits": bits})


def test_knobs_round_trip_and_automatic_ones_are_left_out() -> None:
    word = to_word(INFO["rvq"], 3, {"beam": 16, "codebooks": "auto", "code_bits": "auto", "group_size": 8})
    assert word == "rvq:bits=3,group_size=8,beam=16" or set(word[9:].split(",")) >= {"beam=16"}
    assert from_word("rvq:codebooks=4,code_bits=6", CATALOGUE).knobs == {"codebooks": 4, "code_bits": 6}
    assert from_word("rvq:codebooks=4,code_bits=6", CATALOGUE).bits == 3


@pytest.mark.parametrize("word", ["@preview", "/some/folder", "rvq:bits=9", "kmeans:code_bits=9,group_size=8", "fp16"])
def test_words_off_the_form_are_refused(word: str) -> None:
    with pytest.raises(ConfigError):
        from_word(word, CATALOGUE)


@pytest.mark.parametrize(
    "settings",
    [
        START,
        replace(START, prompt="a & b = ü\n“c”", seed=12, steps=5, guidance=2.5, baseline="nf4", arm="kmeans:bits=2"),
        replace(START, model="sdxl", baseline="", recipe="@preview", more="nf4\nrtn:bits=2,group_size=32", grid=True),
    ],
)
def test_link_restores_every_setting(settings: Settings) -> None:
    link = share_link(settings.to_query())
    query = dict(parse_qsl(link.partition("?")[2]))
    assert read_query(query, START, allowed()) == (settings, [])


def test_bad_parameters_are_ignored_and_named() -> None:
    query = {
        "model": "../etc", "seed": "-4", "steps": "many", "guidance": "nan", "baseline": "x", "arm": "boom:bits=1",
        "recipe": "@no", "grid": "yes", "colour": "red", "prompt": "y" * 5000, "more": "z" * 5000, "__theme": "dark",
    }  # fmt: skip
    settings, ignored = read_query(query, START, allowed())
    assert settings == START
    assert ignored == [name for name in query if name != "__theme"]


@pytest.mark.parametrize(("name", "most"), [("steps", MOST_STEPS), ("guidance", MOST_GUIDANCE)])
def test_a_link_asks_for_no_more_than_a_slider_offers(name: str, most: float) -> None:
    settings, ignored = read_query({name: str(most)}, START, allowed())
    assert (getattr(settings, name), ignored) == (most, [])
    assert read_query({name: str(most + 1)}, START, allowed()) == (START, [name])


def test_space_link_is_the_outer_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACE_ID", "me/sdvq")
    assert share_link({"seed": "1"}) == "https://huggingface.co/spaces/me/sdvq?seed=1"
