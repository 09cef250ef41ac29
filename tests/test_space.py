"""The repository as a Hugging Face Space: README's front matter, and docs/space.md true to the code."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from packaging.requirements import Requirement

from sdvq_core.diffusion.sources import PRESETS

ROOT = Path(__file__).parents[1]
SOURCES = "\n".join(path.read_text("utf-8") for path in [*ROOT.glob("sdvq_core/**/*.py"), ROOT / "app.py"])


def front_matter() -> dict[str, object]:
    _, block, _ = (ROOT / "README.md").read_text("utf-8").split("---\n", 2)
    found = yaml.safe_load(block)
    assert isinstance(found, dict)
    return found


def test_the_front_matter_names_what_is_there() -> None:
    about = front_matter()
    assert about["sdk"] == "gradio"
    assert (ROOT / str(about["app_file"])).is_file()
    assert about["models"] == [source.location for source in PRESETS.values()]
    assert len(str(about["short_description"])) <= 60


def test_its_gradio_is_one_that_we_require() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    gradio = next(Requirement(line) for line in lines if line.startswith("gradio"))
    assert gradio.specifier.contains(str(front_matter()["sdk_version"]))


def test_every_variable_of_the_document_is_read_by_the_code() -> None:
    named = set(re.findall(r"SDVQ_[A-Z_]+", (ROOT / "docs" / "space.md").read_text("utf-8")))
    assert {"SDVQ_DATA", "SDVQ_HUB_ARTIFACTS", "SDVQ_PRELOAD", "SDVQ_GPU_SECONDS"} == named
    assert all(f'"{name}"' in SOURCES for name in named)


def test_every_option_of_the_document_is_one_of_the_app() -> None:
    text, app = (ROOT / "docs" / "space.md").read_text("utf-8"), (ROOT / "app.py").read_text("utf-8")
    options = set(re.findall(r"^\| `(--[a-z-]+)", text, re.MULTILINE))
    assert len(options) == 4
    assert all(f'"{option}"' in app for option in options)
