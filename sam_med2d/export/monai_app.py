"""An app of MONAI Label's: a folder with the weights and a main.py, whose answers sam_med2d/serve/monai.py makes."""

from sam_med2d.export.clients import Client, PredictorClient
from sam_med2d.export.job import Job, said
from sam_med2d.inference.models import open_model
from segment_anything import SamPredictor
from segment_anything.checkpoint import save_weights
from segment_anything.files import replacing
from segment_anything.geometry import EXACT
from segment_anything.weight_files import FRAME, WINDOW
from segment_anything.zoom import NEVER

MAIN = '''"""An app of MONAI Label's, written by sam-med2d export --target monai: clicks and boxes on a scan.

    monailabel start_server --app THIS_FOLDER --studies STUDIES
"""

from pathlib import Path

from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from sam_med2d.serve.monai import MODEL, OBJECT, Answers

WEIGHTS = Path(__file__).parent / "model" / {name!r}


class Clicks(InferTask):
    def __init__(self) -> None:
        super().__init__(
            type=InferType.DEEPGROW, labels=[OBJECT], dimension=3, description={said!r}
        )
        self._answers = Answers(WEIGHTS)

    def is_valid(self) -> bool:
        return True

    def __call__(self, request):
        return self._answers(request)


class App(MONAILabelApp):
    def __init__(self, app_dir, studies, conf) -> None:
        super().__init__(
            app_dir=app_dir, studies=studies, conf=conf, name=MODEL, description={said!r}, version="2.0"
        )

    def init_infers(self):
        return {{MODEL: Clicks()}}
'''


def write_monai(job: Job) -> Client:
    model = job.model
    path = job.folder / "model" / f"{job.name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    window = {WINDOW: "{:g} {:g}".format(*model.window)} if model.window else {}
    save_weights(model.state_dict(), path, metadata={FRAME: model.frame, **window})
    with replacing(job.folder / "main.py") as temporary:
        temporary.write_text(MAIN.format(name=path.name, said=said(model)), encoding="utf-8")
    print(f"{job.folder / 'main.py'}: an app, with the weights in model/")
    opened = open_model(str(path), device="cpu").requires_grad_(False)
    return PredictorClient(SamPredictor(opened, EXACT, NEVER))
