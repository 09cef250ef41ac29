"""The calibration prompts: enough, different, and none that anything is evaluated on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sdvq_core.calibration import CalibrationSettings
from sdvq_core.errors import ConfigError
from sdvq_core.nano.vocabulary import COLOUR_NAMES, curated_objects, is_held_out
from sdvq_core.presets import calibration_prompts, prompts

HELD_OUT = Path(__file__).resolve().parents[2] / "assets" / "nano" / "heldout_prompts.txt"
KNOWN = {item.name for item in curated_objects()}


@pytest.mark.parametrize("tier", ["nano", "sdxl"])
def test_sixty_four_different_prompts_that_are_not_used_to_evaluate(tier):
    found = calibration_prompts(tier)
    assert len(found) == len(set(found)) == 64
    assert not set(found) & set(prompts(tier))
    assert not set(found) & set(HELD_OUT.read_text("utf-8").splitlines())
    assert len(CalibrationSettings(tuple(found)).batches()) == 16


def test_no_nano_prompt_shows_a_held_out_combination():
    for prompt in calibration_prompts("nano"):
        scene, _, ground = prompt.removesuffix(" background").rpartition(" on ")
        colour = ground.split()[-1]
        assert colour in COLOUR_NAMES
        for thing in re.split(" left of | right of | and ", scene):
            name = re.fullmatch("an? (?:small |big )?(.+)", thing)[1]
            assert name in KNOWN
            assert not is_held_out(name, colour)


def test_a_tier_without_prompts_is_refused(tmp_path):
    (tmp_path / "calibration.yaml").write_text("nano: []\n")
    for tier in ("nano", "nothing"):
        with pytest.raises(ConfigError, match=r"calibration\.yaml needs a list of prompts under"):
            calibration_prompts(tier, tmp_path)
