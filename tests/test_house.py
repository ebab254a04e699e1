"""The house: imports point one way, the top level holds what it should, and the doors hand on what people import."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

# A room may import from the floors below its own, and from itself.
FLOORS = (
    {"commands"},
    {"serve"},
    {"app", "export", "training"},
    {"inference", "evaluation"},
    {"convert", "drawing", "prompts"},
    {"volumes", "data", "coco", "image_files"},
    {"errors", "cli", "device", "memory", "distributed", "provenance", "seeds", "packages", "regions", "limits"}
    | {"outputs", "ownership", "stopping", "json_files"},
)
GROUND = FLOORS[-1]  # whose rooms may use one another
TOP = {
    *("train.py", "test.py", "app.py", "DataLoader.py", "metrics.py", "utils.py"),
    *("segment_anything", "sam_med2d", "scripts", "data_demo", "pretrain_model", "examples", "docs", "tests"),
    "tests_clients",
    *("pyproject.toml", "requirements.txt", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "LICENSE"),
    *("Makefile", "Dockerfile", "predictor_example.ipynb", "MANIFEST.in"),
}
DOORS = {
    "DataLoader": "TrainingDataset TestingDataset train_loader test_loader Batch Sample collate Index read_index fit "
    "read_image read_mask DataError",
    "metrics": "METRICS dice iou binarise",
    "utils": "add_flag boolean best_device amp_dtype seed_of seed_everything UsageError finish join_processes",
    "segment_anything": "sam_model_registry build_sam build_sam_vit_b build_sam_vit_l build_sam_vit_h SamPredictor "
    "SammedPredictor SamAutomaticMaskGenerator",
}
ROOMS = sorted((ROOT / "sam_med2d").rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports, wherever in it, with the names that may be modules."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (above, node.module)))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def floor_of(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "sam_med2d").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_imports_point_down(path: Path) -> None:
    room = path.relative_to(ROOT / "sam_med2d").parts[0].removesuffix(".py")
    if room in ("__init__", "__main__"):
        return
    for name in imports(path):
        parts = name.split(".")
        assert parts[0] not in ("train", "test", "app", "DataLoader", "metrics", "utils", "scripts", "tests"), name
        if parts[0] == "sam_med2d" and len(parts) > 1 and parts[1] not in (room, "__version__", "weights"):
            assert floor_of(parts[1]) > floor_of(room) or {parts[1], room} <= GROUND, f"{path.name} imports {name}"


def test_no_circle() -> None:
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in ROOMS}
    graph = {}
    for module, path in modules.items():
        found = {name if name in modules else name.rpartition(".")[0] for name in imports(path)}
        graph[module] = (found & modules.keys()) - {module, "sam_med2d"}
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


@pytest.mark.parametrize("path", sorted((ROOT / "segment_anything").rglob("*.py")), ids=lambda path: path.name)
def test_the_model_needs_nothing_of_ours(path: Path) -> None:
    ours = {"sam_med2d", "train", "test", "app", "DataLoader", "metrics", "utils", "scripts"}
    assert not {name.split(".")[0] for name in imports(path)} & ours


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_json_is_read_in_one_place(path: Path) -> None:
    """Where its depth and size are bounded."""
    if path.name != "json_files.py":
        read = {"json.load", "json.loads", "json.JSONDecoder"}
        text = ast.unparse(ast.parse(path.read_text(encoding="utf-8")))
        assert not [name for name in read if f"{name}(" in text] and "ijson" not in {*imports(path)}


def test_top_level() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git checkout")
    entries = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert {entry for entry in entries if not entry.startswith(".")} - TOP == set()


@pytest.mark.parametrize("door", DOORS)
def test_doors_hand_on_the_names_of_their_users(door: str) -> None:
    module = __import__(door)
    assert module.__doc__ or door == "segment_anything"
    assert [name for name in DOORS[door].split() if not hasattr(module, name)] == []


def test_the_help_of_training_loads_no_tables() -> None:
    """What takes long to import is imported where it is used."""
    slow = {"pandas", "matplotlib", "albumentations", "scipy.integrate", "pydicom", "transformers"}
    code = f"import sys, train; train.parse_args([]); print(*{slow!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == []


def helps(path: Path) -> Iterator[tuple[str, str]]:
    """The flags that a file defines, with their help texts, in which X stands for what is filled in; "" without one."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant | ast.Name):
            continue
        called = ast.unparse(node.func).rpartition(".")[2]
        flag = next((a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)), None)
        if called not in ("add_argument", "add_flag") or flag is None:
            continue
        given = [key.value for key in node.keywords if key.arg == "help"] or node.args[3:]
        if not given or isinstance(given[0], ast.Constant):
            yield flag, given[0].value if given else ""
        elif isinstance(given[0], ast.JoinedStr):
            yield flag, "".join(part.value if isinstance(part, ast.Constant) else "X" for part in given[0].values)


def test_help_texts_are_whole_sentences() -> None:
    scripts = [
        *(ROOT / "scripts").glob("*.py"),
        *(ROOT / "examples").rglob("*.py"),
        ROOT / "train.py",
        ROOT / "test.py",
    ]
    found = [(path.name, *told) for path in (*ROOMS, *scripts) for told in helps(path)]
    assert len(found) > 300
    assert [one for one in found if not (one[2][:1].isupper() and one[2].endswith("."))] == []
