"""What `import segment_anything` gives, and what it does not load."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT


def said_by(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("module", ["segment_anything", "sam_med2d.errors", "sam_med2d.evaluation.summary"])
def test_names_and_errors_and_tables_load_no_torch(module: str) -> None:
    assert said_by(f"import sys, {module}; print('torch' in sys.modules)") == "False"


@pytest.mark.parametrize(
    "first", ["import segment_anything.build_sam", "from segment_anything.build_sam import sam_model_registry"]
)
def test_build_sam_is_the_function_whoever_loads_it_first(first: str) -> None:
    assert said_by(f"{first}; from segment_anything import build_sam; print(callable(build_sam))") == "True"


def test_every_name_is_there() -> None:
    asked = (
        "from segment_anything import build_sam; print(callable(build_sam))",
        "import segment_anything as s; print([n for n in s.__all__ if getattr(s, n, None) is None])",
        "print(s.modeling.Sam is s.Sam, hasattr(s, 'nothing'))",
    )
    assert said_by("; ".join(asked)).split("\n") == ["True", "[]", "True False"]
