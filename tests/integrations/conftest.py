"""The bundled model compressed: as a folder, as the UNet that diffusers loads, in its pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from native_cases import WORD, make_pipe


@pytest.fixture(scope="session")
def nano_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command line makes of the bundled model by WORD."""
    from sdvq_core.arms import parse_arm
    from sdvq_core.engine import Engine

    return [*Engine(tmp_path_factory.mktemp("data"), "cpu").compress("nano", parse_arm(WORD))][-1]


@pytest.fixture
def unet(nano_artifact: Path) -> Any:
    """The compressed UNet as plain diffusers loads it."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(nano_artifact)


@pytest.fixture
def pipe(unet: Any) -> Any:
    """The bundled pipeline with the compressed UNet."""
    return make_pipe(unet)
