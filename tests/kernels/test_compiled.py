"""Jobs on threads: every one is done once, errors come back, and nobody waits for work that is not theirs.

Machine code on disk: taken again, and made anew when anything that it may have been made from is another.
"""

import os
import shutil
import threading
import time
from pathlib import Path

import pytest

compiled = pytest.importorskip("sdvq_core.kernels.compiled")


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_job_is_done_once(threads):
    done = []
    compiled.in_threads(lambda job: done.append(job), [(number,) for number in range(20)], threads)
    assert sorted(done) == list(range(20))


def test_an_error_of_any_job_comes_back():
    def work(job):
        time.sleep(0.01)
        if job == 3:
            raise ValueError("job 3")

    with pytest.raises(ValueError, match="job 3"):
        compiled.in_threads(work, [(number,) for number in range(8)], 2)


def test_a_busy_pool_does_not_hold_up_who_has_finished():
    release = threading.Event()
    blockers = [compiled._pool().submit(release.wait, 20) for _ in range(os.cpu_count() or 2)]
    done = []
    start = time.monotonic()
    compiled.in_threads(done.append, [(1,), (2,)], 2)
    took = time.monotonic() - start
    release.set()
    for blocker in blockers:
        blocker.result()
    assert sorted(done) == [1, 2]
    assert took < 10


ROOM = Path(compiled.__file__).parent


@pytest.mark.parametrize("name", ["compiled.py", "decode_numba.py", "search_numba.py"])
def test_the_stamp_of_machine_code_changes_with_every_source_of_it(name, tmp_path):
    for path in (ROOM / "compiled.py", *ROOM.glob("*_numba.py")):
        shutil.copy(path, tmp_path)
    compiled.stamp.cache_clear()
    before = compiled.stamp(tmp_path)
    assert before == compiled.stamp(ROOM)
    source = (tmp_path / name).read_text()
    assert "builder.load" in source or name == "compiled.py"
    (tmp_path / name).write_text(source.replace("builder.", "builder .", 1))
    compiled.stamp.cache_clear()
    assert compiled.stamp(tmp_path) != before


@pytest.mark.parametrize("library", ["numba", "llvmlite"])
def test_another_compiler_is_another_stamp(library, monkeypatch):
    compiled.stamp.cache_clear()
    before = compiled.stamp()
    monkeypatch.setattr(getattr(compiled, library), "__version__", "0")
    compiled.stamp.cache_clear()
    assert compiled.stamp() != before
    compiled.stamp.cache_clear()


def hits(function):
    """How often calling `function`, compiled anew, found machine code on disk."""
    made = compiled.compiled(function)
    assert made(3) == 6
    return sum(made.stats.cache_hits.values())


def test_machine_code_on_disk_is_made_anew_when_a_helper_s_source_is_another(tmp_path, monkeypatch):
    def double(x):
        return x + x

    monkeypatch.setattr(compiled.numba.config, "CACHE_DIR", str(tmp_path))
    assert [hits(double), hits(double)] == [0, 1]
    before = compiled.stamp()
    monkeypatch.setattr(compiled, "stamp", lambda: "another")
    assert [hits(double), hits(double)] == [0, 1]
    monkeypatch.setattr(compiled, "stamp", lambda: before)
    assert hits(double) == 0


def test_the_kernels_are_cached():
    search = pytest.importorskip("sdvq_core.kernels.search_numba")
    assert search._search._cache._cache_file._source_stamp[1] == compiled.stamp()
