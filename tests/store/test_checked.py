"""Content that was compared once is not compared again while its file is the same; whatever changes it is noticed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from core_cases import tiny_artifact

from sdvq_core.errors import StoreError
from sdvq_core.plan import vqdm_rules
from sdvq_core.quantizers import parse
from sdvq_core.store import checked, copy_artifact, read_artifact, write_artifact
from sdvq_core.store import reading as module
from sdvq_core.store.artifact import CONFIG_NAME, WEIGHTS_NAME
from sdvq_core.store.tensor_file import TensorFile


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SDVQ_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(checked, "_SETTLED_NS", 0)
    write_artifact(tmp_path / "artifact", tiny_artifact(vqdm_rules(parse("rtn:bits=4")))[0])
    return tmp_path / "artifact"


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A number per comparison of a whole content."""
    found: list[int] = []
    own = module.digest

    def digest(tensors: object) -> str:
        found.append(1)
        return own(tensors)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "digest", digest)
    return found


def test_the_content_is_compared_once(folder: Path, compared: list[int]) -> None:
    first, second = read_artifact(folder), read_artifact(folder)
    assert len(compared) == 1
    assert first.manifest == second.manifest


def test_a_change_that_hides_its_time_is_noticed(folder: Path, compared: list[int]) -> None:
    file = folder / WEIGHTS_NAME
    read_artifact(folder)
    before, content = file.stat(), bytearray(file.read_bytes())
    content[-1] ^= 1
    with file.open("r+b") as same:
        same.write(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    with pytest.raises(StoreError, match="SHA-256"):
        read_artifact(folder)
    assert len(compared) == 2


def test_another_manifest_is_another_matter(folder: Path, compared: list[int]) -> None:
    read_artifact(folder)
    config = folder / CONFIG_NAME
    sha256 = read_artifact(folder).manifest.sha256
    config.write_text(config.read_text().replace(sha256, "0" * 64))
    with pytest.raises(StoreError, match="SHA-256"):
        read_artifact(folder)
    assert len(compared) == 2


def test_what_has_just_been_written_is_not_remembered(
    folder: Path, compared: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked, "_SETTLED_NS", 60 * 10**9)
    read_artifact(folder)
    read_artifact(folder)
    assert len(compared) == 2


@pytest.mark.parametrize("damage", ["", "[]", '{"sha256": 1'])
def test_a_damaged_memory_means_comparing_again(folder: Path, compared: list[int], damage: str) -> None:
    read_artifact(folder)
    (known,) = checked.data_folder().glob("checked/*.json")
    known.write_text(damage)
    read_artifact(folder)
    read_artifact(folder)
    assert len(compared) == 2


def test_a_data_folder_that_cannot_be_written_does_no_harm(
    folder: Path, compared: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDVQ_DATA", str(folder / CONFIG_NAME))  # a file
    read_artifact(folder)
    read_artifact(folder)
    assert len(compared) == 2


def test_a_file_that_changed_while_it_was_read_is_not_remembered(
    folder: Path, compared: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    stamps = iter(range(100))
    monkeypatch.setattr(TensorFile, "stamp", property(lambda file: (1, 2, 3, 4, next(stamps))))
    read_artifact(folder)
    read_artifact(folder)
    assert len(compared) == 2


def test_copies_are_compared_too(folder: Path, compared: list[int], tmp_path: Path) -> None:
    copy_artifact(folder, tmp_path / "copy")
    read_artifact(folder)
    assert len(compared) == 1
    read_artifact(tmp_path / "copy")
    assert len(compared) == 2


def test_what_is_forgotten_is_compared_again(folder: Path, compared: list[int]) -> None:
    read_artifact(folder)
    checked.forget(folder / WEIGHTS_NAME)
    read_artifact(folder)
    assert len(compared) == 2


def test_a_machine_without_a_home_loads_all_the_same(
    folder: Path, compared: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(checked, "data_folder", nowhere)
    read_artifact(folder)
    read_artifact(folder)
    assert len(compared) == 2
