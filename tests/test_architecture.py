"""The house: who imports whom, which library lives in which room, and the rules that a reader relies on.

TABLE is the import table of ARCHITECTURE.md: a module imports from lines below its own only, never from its line.
"""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "sdvq_core"
FILES = sorted(CORE.rglob("*.py"))

TABLE = (
    ("app",),
    ("ui", "cli"),
    ("workbench",),
    ("bench", "comparison", "evaluation", "inspection", "needs", "results"),
    ("engine", "on_load"),
    ("making",),
    ("shelf",),
    ("tuning",),
    ("hub_artifacts", "production", "rates"),
    ("teaching",),
    ("statistics_crew",),
    ("sequential", "setup"),
    ("arms", "export", "judges", "pace", "statistics", "text_encoders"),
    ("cluster", "peers"),
    ("compress",),
    ("encoding", "diffusion", "recipes"),
    ("targets",),
    ("allocation",),
    ("distillation",),
    ("plan", "integrations", "calibration"),
    ("store", "quantizers"),
    ("nn",),
    ("formats", "kmeans", "ledger", "metrics", "plots", "presets"),
    ("summaries",),
    ("kernels", "qtensor", "jobs"),
    ("bitpack", "crew", "grouping", "knobs", "memory", "records"),
    ("errors", "folders", "naming", "version"),
)
LEVEL = {room: len(TABLE) - depth for depth, rooms in enumerate(TABLE) for room in rooms}
TRAINING = "nano"  # makes the bundled model; nothing imports it

HEAVY = {  # library -> rooms that may import it
    "gradio": {"ui"},
    "plotly": {"plots"},
    "jinja2": {"evaluation"},
    "yaml": {"presets", "recipes"},
    "diffusers": {"diffusion", "integrations", "nano", "peers", "production", "bench"},
    "transformers": {"diffusion", "integrations", "metrics", "nano"},
    "torchmetrics": {"metrics"},
    "typer": {"cli"},
    "scipy": {"allocation"},
    "safetensors": {"store", "diffusion", "metrics", "nano"},
    "huggingface_hub": {"diffusion", "hub_artifacts", "judges", "metrics"},
    "numba": {"kernels"},
    "llvmlite": {"kernels"},
    "triton": {"kernels"},
    "bitsandbytes": {"peers", "bench"},
    "gguf": {"peers"},
    "hqq": {"peers"},
    "optimum": {"peers"},
    "sdnq": {"peers"},
    "faiss": {"bench"},
    "ray": {"cluster", "bench"},
    "spaces": {"app"},  # and ui/zero_gpu.py by name, where it is there
}


def room_of(path: Path) -> str:
    """The room of a file: its folder below sdvq_core, or its own name."""
    parts = path.relative_to(CORE).with_suffix("").parts
    return parts[0]


def imports(path: Path) -> list[tuple[str, int]]:
    """(module, line) of every import, those inside functions included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "sdvq_core" else []
            found += [(name, node.lineno) for name in names or [str(node.module)]]
    return found


def target_room(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] != "sdvq_core" or len(parts) == 1:
        return None
    return parts[1] if (CORE / parts[1]).exists() or (CORE / f"{parts[1]}.py").exists() else None


def test_every_room_stands_in_the_table_once():
    rooms = {room_of(path) for path in FILES} - {"__init__", "__main__", TRAINING}
    assert rooms | {"app"} == set(LEVEL)
    assert len(LEVEL) == sum(map(len, TABLE))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CORE)))
def test_imports_run_downwards(path):
    room = room_of(path)
    if room in ("__init__", "__main__"):
        return
    for module, line in imports(path):
        target = target_room(module)
        if target is None or target == room:
            continue
        assert target != TRAINING, f"{path.name}:{line} imports {module}, which only makes the bundled model"
        if room != TRAINING:
            assert LEVEL[target] < LEVEL[room], f"{path.name}:{line}: {room} may not import {module}"


def test_reading_a_file_needs_no_search_code():
    for room in ("nn", "store", "integrations"):
        for path in (CORE / room).glob("*.py"):
            assert not [m for m, _ in imports(path) if m.startswith("sdvq_core.quantizers")], path


@pytest.mark.parametrize("path", [*FILES, ROOT / "app.py"], ids=lambda path: path.name)
def test_heavy_libraries_stay_in_their_rooms(path):
    room = "app" if path.name == "app.py" else room_of(path)
    for module, line in imports(path):
        allowed = HEAVY.get(module.split(".")[0])
        assert allowed is None or room in allowed, f"{path.name}:{line}: {module} belongs to {sorted(allowed)}"


def test_the_app_is_an_entry_point_only():
    rooms = {target_room(module) for module, _ in imports(ROOT / "app.py")} - {None}
    assert rooms <= {"ui", "workbench", "errors", "setup", "version"}


PACKAGES = sorted({path.parent for path in FILES if path.name == "__init__.py"})


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_all_is_complete(folder):
    tree = ast.parse((folder / "__init__.py").read_text("utf-8"))
    listed = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    brought = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("sdvq_core")
        for alias in node.names
        if not alias.name.startswith("_") or alias.name == "__version__"
    }
    if not listed:
        assert not brought, "a room that offers names lists them in __all__"
        return
    names = listed[0]
    assert len(names) == len(set(names))
    own = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own = {name for name in own if not name.startswith("_")}
    hidden = {"integrations"} if folder == CORE else set()
    assert set(names) == (brought | own) - hidden
    module = importlib.import_module(".".join(folder.relative_to(ROOT).parts))
    assert all(hasattr(module, name) for name in names)


def test_the_public_names_of_the_contract():
    import sdvq_core

    promised = {"make", "catalogue", "compress", "CompressionPlan", "Rule", "Workbench", "load_artifact"}
    assert promised <= set(sdvq_core.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sdvq_core.nothing


LIGHT = """
import sys
import sdvq_core
heavy = {"diffusers", "transformers", "gradio", "plotly", "torchmetrics", "typer", "yaml", "PIL", "pandas"}
heavy |= {"scipy", "numba", "triton", "bitsandbytes", "gguf", "hqq", "optimum", "sdnq"}
sys.exit(",".join(sorted(heavy & set(sys.modules))) or 0)
"""


def test_importing_the_package_is_light():
    done = subprocess.run([sys.executable, "-c", LIGHT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_drawer_for_everything():
    names = {path.stem for path in FILES} | {path.parent.name for path in FILES}
    assert not names & {"utils", "util", "helpers", "common", "misc", "tools"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CORE)))
def test_every_module_says_what_it_is_and_never_prints(path):
    tree = ast.parse(path.read_text("utf-8"))
    assert ast.get_docstring(tree), "a module opens with what it is"
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not calls & {"print", "eval", "exec", "breakpoint", "input"}
    assert not {name for name in calls if name.endswith(".cuda")}
    if room_of(path) != TRAINING:
        assert "torch.load" not in calls, "no pickle anywhere"
    stars = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and any(a.name == "*" for a in n.names)]
    assert not stars


def test_the_version_stands_in_one_place():
    from sdvq_core import __version__

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version", "dependencies"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "sdvq_core.version.__version__"}
    pattern = re.compile(rf"""["']{re.escape(__version__)}["']""")
    assert [path.name for path in FILES if pattern.search(path.read_text("utf-8"))] == ["version.py"]
    changelog = ROOT / "CHANGELOG.md"
    if changelog.exists():
        assert f"[{__version__}]" in changelog.read_text() or "[Unreleased]" in changelog.read_text()


def requirements(name: str) -> set[str]:
    lines = (ROOT / name).read_text().splitlines()
    return {re.split(r"[<>=!~ ]", line)[0].lower() for line in lines if line and not line.startswith("#")}


def test_every_import_is_a_listed_requirement():
    listed = requirements("requirements.txt")
    optional = dict.fromkeys(("peers", "bench"), requirements("requirements-peers.txt"))  # by room
    optional["cluster"] = requirements("requirements-dev.txt")
    optional["bench"] = optional["bench"] | {"ray"}
    distribution = {"PIL": "pillow", "yaml": "pyyaml", "optimum": "optimum-quanto", "faiss": "faiss-cpu"}
    # of diffusers, transformers, numba and torch
    indirect = {"httpx", "huggingface_hub", "tokenizers", "llvmlite", "triton"}
    for path in [path for path in FILES if room_of(path) != TRAINING]:
        for module, line in imports(path):
            top = module.split(".")[0]
            if top not in sys.stdlib_module_names and top not in indirect | {"sdvq_core"}:
                allowed = listed | optional.get(room_of(path), set())
                assert distribution.get(top, top) in allowed, f"{path.name}:{line} imports {top}"


def run_tool(name: str, *arguments: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed; pip install -r requirements-dev.txt")
    done = subprocess.run(
        [sys.executable, "-m", name, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_check():
    run_tool("ruff", "check", ".")


def test_ruff_format():
    run_tool("ruff", "format", "--check", ".")


@pytest.mark.slow
def test_mypy():
    run_tool("mypy")
