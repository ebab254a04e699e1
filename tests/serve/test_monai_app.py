"""The target `monai`: its main.py, run as MONAI Label does; stand-ins take its place where it is not installed."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk

pytest.importorskip("blosc2", reason='blosc2 is not installed: pip install -e ".[serve]"')

from sam_med2d.commands import segment_volume
from sam_med2d.errors import DataError, PromptError
from sam_med2d.export.job import Job
from sam_med2d.export.targets import export
from sam_med2d.inference.models import SMALL, open_model
from tests.serve.serving import blobs

TASK, APP = "monailabel.interfaces.tasks.infer_v2", "monailabel.interfaces.app"


class InferTask:
    """What MONAI Label's takes and gives."""

    def __init__(self, type, labels, dimension, description, config=None) -> None:
        self.told = {"type": type, "labels": labels, "dimension": dimension, "description": description}

    def info(self) -> dict:
        return self.told


class MONAILabelApp:
    """What MONAI Label's hands on; its own imports clients of DICOMweb, Girder and XNAT."""

    def __init__(self, app_dir, studies, conf, name="", description="", version="2.0", labels=None) -> None:
        self.app_dir, self.name = app_dir, name
        self.infers = self.init_infers()


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("monailabel") is None:
        for name in ("monailabel", "monailabel.interfaces", "monailabel.interfaces.tasks", TASK):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        sys.modules[TASK].__dict__.update(InferTask=InferTask, InferType=SimpleNamespace(DEEPGROW="deepgrow"))
    module = ModuleType(APP)
    module.__dict__["MONAILabelApp"] = MONAILabelApp
    monkeypatch.setitem(sys.modules, APP, module)


def test_its_app_answers_as_segment_volume(tmp_path: Path, monkeypatch) -> None:
    model = open_model(SMALL, device="cpu")
    model.window = (-200.0, 1200.0)
    picture = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    dices = export("monai", Job(model, tmp_path / "app", "mine", [picture]))
    assert min(dices.values()) == 1.0 and "start_server" in (tmp_path / "app/README.md").read_text()
    stand_in(monkeypatch)
    spec = importlib.util.spec_from_file_location("main", tmp_path / "app/main.py")
    main = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(main)
    app = main.App(str(tmp_path / "app"), str(tmp_path), {})
    (task,) = app.infers.values()
    assert task.is_valid() and task.info()["labels"] == ["object"] and task.info()["dimension"] == 3
    volume = tmp_path / "ball.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(next(blobs()).astype(np.int16)), str(volume))
    path, told = task(
        {"image": str(volume), "foreground": [[30, 20, 4]], "background": [], "result_extension": ".nrrd"}
    )
    words = ["--input", volume, "--output", tmp_path / "wanted.nrrd", "--point", 30, 20, 4]
    weights = ["--sam_checkpoint", tmp_path / "app/model/mine.safetensors", "--device", "cpu"]
    segment_volume.main([*map(str, [*words, *weights])])
    found, wanted = (sitk.GetArrayFromImage(sitk.ReadImage(str(one))) for one in (path, tmp_path / "wanted.nrrd"))
    assert np.array_equal(found, wanted) and found.any() and told["label_names"] == {"object": 1}
    Path(path).unlink()
    with pytest.raises(PromptError, match="no click"):
        task({"image": str(volume)})
    with pytest.raises(DataError, match="nothing"):
        task({"image": str(tmp_path / "nothing.nii.gz"), "foreground": [[1, 1, 1]]})
