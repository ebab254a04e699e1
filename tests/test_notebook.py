"""predictor_example.ipynb runs, from the weights of the project and from a given file, and keeps its pictures."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from segment_anything import sam_model_registry
from segment_anything.checkpoint import save_weights
from tests.conftest import ROOT
from tests.segment_anything.test_model import randomise

NOTEBOOK = ROOT / "predictor_example.ipynb"
SECTIONS = ("A click", "A correction", "A box", "Several boxes", "A mask", "Everything")

# In a process of its own: a client of kernels does not get on with event loops that other tests have left in this one.
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
path, folder = sys.argv[1:]
notebook = nbformat.read(path, as_version=4)
client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": folder}})
# the kernel of this Python, whatever kernels are registered under that name elsewhere
client.create_kernel_manager().kernel_spec.argv[0] = sys.executable
client.execute()
nbformat.write(notebook, path)
"""


def pictures_of(notebook: nbformat.NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ()))


def printed(notebook: nbformat.NotebookNode) -> str:
    return "".join(
        output.text for cell in notebook.cells for output in cell.get("outputs", ()) if output.output_type == "stream"
    )


def test_its_pictures_are_kept() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    said = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert all(f"## {section}" in said for section in SECTIONS) and pictures_of(notebook) == len(SECTIONS)
    assert not any(output.output_type == "error" for cell in notebook.cells for output in cell.get("outputs", ()))
    assert NOTEBOOK.stat().st_size < 2_000_000


@pytest.fixture
def tiny(tmp_path) -> Path:
    path = tmp_path / "given.safetensors"
    save_weights(randomise(sam_model_registry["vit_t"](image_size=64, encoder_adapter=True)).state_dict(), path)
    return path


@pytest.mark.parametrize("given", [False, True])
def test_it_runs(given, tiny, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("SAM_IMAGE", raising=False)
    monkeypatch.delenv("SAM_CHECKPOINT", raising=False)
    if given:
        monkeypatch.setenv("SAM_CHECKPOINT", str(tiny))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    path = tmp_path / "executed.ipynb"
    nbformat.write(notebook, path)
    done = subprocess.run([sys.executable, "-c", EXECUTE, path, ROOT], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    notebook = nbformat.read(path, as_version=4)
    assert pictures_of(notebook) == len(SECTIONS)
    assert ("given.safetensors (vit_t, 64 px, adapters)" in printed(notebook)) == given
    assert "masks (2, 3, 192, 159)" in printed(notebook)
