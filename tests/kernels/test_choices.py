"""The choice between two ways of a product: measured once per machine, kept in a file, never in the way of an answer.

The ways here are stand-ins that count their calls; with real kernels the choice is tested in `test_decode_triton`.
"""

import json
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from sdvq_core.kernels import choices as room
from sdvq_core.kernels.choice_file import ChoiceFile
from sdvq_core.kernels.choices import Case, Choices

CASE = Case("NVIDIA H100 80GB HBM3", 256, 1280, 160, 3, 8, 8, torch.float16)


@pytest.fixture(autouse=True)
def measuring(monkeypatch):
    monkeypatch.delenv(room.SWITCH, raising=False)
    room._warn.cache_clear()


@pytest.fixture
def file(tmp_path):
    return ChoiceFile(lambda: tmp_path)


class Way:
    """Answers with a number, or fails; `calls` counts."""

    def __init__(self, answer=0.0, error=None):
        self.answer, self.error, self.calls = answer, error, 0

    def __call__(self):
        self.calls += 1
        if self.error:
            raise self.error
        return torch.tensor(self.answer)


class Clock:
    """Says what it is told to say of (fused, decoded), after running both; `calls` counts."""

    def __init__(self, *seconds):
        self.seconds, self.calls = seconds, 0

    def __call__(self, ways):
        self.calls += 1
        for way in ways:
            way()
        return self.seconds


@pytest.mark.parametrize(("seconds", "answer"), [((1.0, 2.0), 1.0), ((2.0, 1.0), 0.0), ((1.0, 1.0), 0.0)])
def test_the_faster_way_is_found_once_and_kept(seconds, answer, file):
    clock = Clock(*seconds)
    choices, fused, decoded = Choices(clock, file), Way(1.0), Way(0.0)
    answers = [float(choices.run(CASE, fused, decoded, may_time=True)) for _ in range(3)]
    assert answers == [answer] * 3
    assert clock.calls == 1
    assert choices.known() == {CASE: bool(answer)}
    choices.run(CASE._replace(rows=128), fused, decoded, may_time=True)
    assert clock.calls == 2, "other rows, another case"


def test_where_nothing_may_be_timed_what_is_known_counts_and_else_decoding(file):
    clock = Clock(1.0, 2.0)
    choices, fused, decoded = Choices(clock, file), Way(1.0), Way(0.0)
    assert float(choices.run(CASE, fused, decoded, may_time=False)) == 0
    assert (clock.calls, choices.known()) == (0, {})
    assert float(choices.run(CASE, fused, decoded, may_time=True)) == 1
    assert float(choices.run(CASE, fused, decoded, may_time=False)) == 1
    assert clock.calls == 1


def test_a_kernel_that_fails_is_not_tried_again_and_warns_once(file):
    failing, decoded = Way(error=RuntimeError("out of resource: shared memory\nand more")), Way(0.0)
    choices = Choices(Clock(1.0, 2.0), file)
    with pytest.warns(UserWarning, match=r"decodes its weight apart .* failed: out of resource: shared memory$"):
        assert float(choices.run(CASE, failing, decoded, may_time=True)) == 0
    with warnings.catch_warnings(action="error"):
        for rows in (256, 77):
            assert float(choices.run(CASE._replace(rows=rows), failing, decoded, may_time=True)) == 0
    assert failing.calls == 1, "the same kernel serves other rows"
    assert float(choices.run(CASE._replace(books=2), Way(1.0), decoded, may_time=True)) == 1
    broken = Choices(Clock(1.0, 2.0), file)
    assert float(broken.run(CASE, Way(1.0), decoded, may_time=True)) == 1
    with pytest.warns(UserWarning, match="illegal"):
        assert float(broken.run(CASE, Way(error=RuntimeError("illegal")), decoded, may_time=True)) == 0
    assert broken.known() == {CASE: False}


FULL = torch.OutOfMemoryError("CUDA out of memory")


class Full:
    """A clock for which no memory is left; `calls` counts."""

    def __init__(self):
        self.calls = 0

    def __call__(self, ways):
        self.calls += 1
        raise FULL


def test_where_memory_is_too_short_to_measure_what_needs_less_of_it_is_taken_once_and_for_all(file):
    clock = Full()
    choices, fused, decoded = Choices(clock, file), Way(1.0), Way(0.0)
    with warnings.catch_warnings(action="error"):
        answers = [float(choices.run(CASE, fused, decoded, may_time=True)) for _ in range(3)]
    assert (answers, clock.calls, decoded.calls) == ([1.0] * 3, 1, 0)
    assert file.read(CASE.device) == {}, "says nothing about other processes"


def test_a_weight_that_finds_no_room_is_decoded_inside_from_then_on(file):
    choices, fused, decoded = Choices(Clock(2.0, 1.0), file), Way(1.0), Way(0.0)
    assert float(choices.run(CASE, fused, decoded, may_time=True)) == 0
    decoded.error = FULL
    assert [float(choices.run(CASE, fused, decoded, may_time=True)) for _ in range(2)] == [1.0] * 2
    assert decoded.calls == 3, "timed, taken, and once more in vain"


def test_where_neither_way_finds_room_the_error_says_so(file):
    full = Way(error=FULL)
    with pytest.raises(torch.OutOfMemoryError):
        Choices(Clock(1.0, 2.0), file).run(CASE, full, full, may_time=True)
    with pytest.raises(RuntimeError, match="a bug"):
        Choices(Full(), file).run(CASE._replace(rows=3), Way(1.0), Way(error=RuntimeError("a bug")), may_time=False)


def test_another_process_chooses_what_the_first_one_chose(file):
    first = Choices(Clock(1.0, 2.0), file)
    first.run(CASE, Way(1.0), Way(0.0), may_time=True)
    clock = Clock(2.0, 1.0)
    second = Choices(clock, file)
    assert float(second.run(CASE, Way(1.0), Way(0.0), may_time=False)) == 1, "a captured graph as well"
    assert clock.calls == 0
    other = CASE._replace(device="NVIDIA L4")
    assert float(second.run(other, Way(1.0), Way(0.0), may_time=True)) == 0, "another GPU, another file"
    names = sorted(path.name for path in file.path("").parent.iterdir())
    assert names == ["nvidia-h100-80gb-hbm3.jsonl", "nvidia-l4.jsonl"]


def test_of_two_that_measure_at_once_the_first_is_believed_by_both(file):
    second = Choices(Clock(2.0, 1.0), file)
    second._of(CASE.device)  # has read the file before the first one writes
    first = Choices(Clock(1.0, 2.0), file)
    answers = [float(choices.run(CASE, Way(1.0), Way(0.0), may_time=True)) for choices in (first, second)]
    assert answers == [1.0, 1.0]


def test_lines_of_many_writers_do_not_mix(file):
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(lambda number: file.add("x", f"{number % 7}", number % 2 == 0, (1.0, 2.0)), range(200)))
    kept = file.read("x")
    assert len(kept) == 7
    assert [kept[f"{number % 7}"] for number in range(200)] == said


def test_what_is_not_a_line_of_this_version_does_not_count(file):
    path = file.path("x")
    path.parent.mkdir()
    odd = [
        "",
        "nonsense",
        "[]",
        '{"version": 1, "case": 3, "fused": true}',
        '{"version": 2, "case": "b", "fused": true}',
    ]
    path.write_text("\n".join(odd) + '\n{"version": 1, "case": "a", "fused": true}\n{"version": 1, "case": "a"')
    assert file.read("x") == {"a": True}
    path.write_bytes(b"\xff\xfe")
    assert file.read("x") == {}


def test_where_nothing_can_be_kept_weights_are_decoded_before(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    choices = Choices(Clock(1.0, 2.0), ChoiceFile(lambda: tmp_path / "file"))
    assert float(choices.run(CASE, Way(1.0), Way(0.0), may_time=True)) == 0, "the same in every process"


def test_it_can_be_switched_off(file, monkeypatch):
    Choices(Clock(1.0, 2.0), file).run(CASE, Way(1.0), Way(0.0), may_time=True)
    monkeypatch.setenv(room.SWITCH, "0")
    clock = Clock(1.0, 2.0)
    assert float(Choices(clock, file).run(CASE, Way(1.0), Way(0.0), may_time=True)) == 0
    assert clock.calls == 0


def test_a_line_says_what_was_measured(file):
    Choices(Clock(1.0, 2.0), file).run(CASE, Way(1.0), Way(0.0), may_time=True)
    line = json.loads(file.path(CASE.device).read_text())
    words = "256 rows, 1280 x 160 x 8, 3 x 8 bits, float16"
    assert line == {"version": 1, "case": words, "fused": True, "inside": 1.0, "apart": 2.0}


def test_the_file_is_below_the_data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SDVQ_DATA", str(tmp_path))
    assert room.CHOICES._file.path("NVIDIA L4") == tmp_path / "kernels" / "nvidia-l4.jsonl"
