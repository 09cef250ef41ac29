"""The bundled model as SDXL-Turbo comes: the same weights behind Turbo's scheduler.

EulerAncestralDiscreteScheduler with trailing timesteps, as in stabilityai/sdxl-turbo; nano's own prediction type.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from sdvq_core.diffusion.sources import nano_folder

SCHEDULER = {
    "_class_name": "EulerAncestralDiscreteScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "steps_offset": 1,
    "timestep_spacing": "trailing",
}


def make_turbo(folder: Path) -> Path:
    """A pipeline folder that links to nano's weights."""
    nano = nano_folder()
    folder.mkdir(parents=True)
    for part in nano.iterdir():
        if part.is_dir() and part.name != "scheduler":
            os.symlink(part.resolve(), folder / part.name)
    index = json.loads((nano / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", SCHEDULER["_class_name"]]
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    return folder
