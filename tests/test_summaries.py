"""An arm's summary survives JSON, whoever wrote it."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
from summary_cases import reference, summary

from sdvq_core.errors import StoreError
from sdvq_core.jobs import Scores
from sdvq_core.summaries import MEASURES, ArmSummary


def test_measures_are_the_scores():
    assert tuple(field.name for field in fields(Scores)) == MEASURES


@pytest.mark.parametrize("arm", [reference(), summary("rtn", 0.1)], ids=["reference", "rtn"])
def test_json_and_back(arm):
    written = json.loads(json.dumps(arm.to_json()))
    back = ArmSummary.from_json(written)
    assert back.ledger == arm.ledger
    assert back.timesteps == arm.timesteps
    assert json.loads(json.dumps(back.to_json())) == {**written, "pairs": []}


def test_results_of_the_first_version_are_read():
    written = summary("rtn", 0.1).to_json()
    for key in ("label", "latent_mse_median", "frechet", "cmmd", "timesteps", "pairs"):
        del written[key]
    back = ArmSummary.from_json(written)
    assert (back.label, back.frechet, back.timesteps) == ("rtn", None, None)


@pytest.mark.parametrize("data", [{}, {"arm": "rtn"}, {**summary("rtn", 0.1).to_json(), "psnr": 3}])
def test_something_else_is_refused(data):
    with pytest.raises(StoreError, match="not an arm of a results"):
        ArmSummary.from_json(data)
