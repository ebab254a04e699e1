"""ONNX Runtime and OpenVINO behind the interface of `Sam`: what `SamPredictor`, `evaluate` and the app take as a model.

    model = open_runtime("openvino", "vit_b.encoder.onnx", "vit_b.decoder.onnx", threads=2, precision="bfloat16")
    predictor = SamPredictor(model)

The encoder must be exported without --use-preprocess. A program that has no PyTorch either is
examples/SAM-Med2D-onnxruntime/main.py.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from sam_med2d.errors import UsageError
from segment_anything import ABSENT, MULTIPLE, SINGLE, Prediction, Prompts, Sam
from segment_anything.frames import SAM, SAM_MED2D
from segment_anything.modeling.prompt_encoder import labels_of_corners
from segment_anything.modeling.sam import PIXEL_MEAN, PIXEL_STD, normalised
from segment_anything.weight_files import WINDOW, window_in

if TYPE_CHECKING:  # an extra
    import openvino

BACKENDS = ("onnxruntime", "openvino")
PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}  # as OpenVINO calls them
PROBABILITIES, LOGITS = "probabilities", "logits"  # what a decoder's mask_input holds, as its facts say
CHOOSING = (
    "choosing"  # the fact of a decoder's file: how answers are chosen, see `segment_anything.modeling.sam.ranked`
)
REFINED = "refinement"  # the fact of a decoder's file that its model has a refinement network
REFINEMENT_INPUTS = {
    *("input_image", "low_res_masks", "point_coords", "point_labels", "mask_input", "has_mask_input", "strokes"),
}
DECODER_INPUTS = {"image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size"}

Shape = tuple[int | None, ...]  # None: any


class Session(Protocol):
    """A compiled graph. inputs: their shapes by name; facts: what its export left in it, by name."""

    path: Path
    inputs: dict[str, Shape]
    facts: dict[str, str]

    def __call__(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]: ...


class OnnxRuntimeSession:
    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        """threads: of one inference; None: one for each core. Raises UsageError."""
        import onnxruntime  # an extra

        self.path = Path(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3  # its warnings are about its own optimiser
        self._session = _opened(
            self.path, lambda: onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        )
        self.inputs: dict[str, Shape] = {
            one.name: tuple(side if isinstance(side, int) else None for side in one.shape)
            for one in self._session.get_inputs()
        }
        self.facts = dict(self._session.get_modelmeta().custom_metadata_map)
        self._outputs = [one.name for one in self._session.get_outputs()]

    def __call__(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self._outputs, self._session.run(None, feeds)))


class OpenVinoSession:
    def __init__(self, path: str | Path, threads: int | None = None, precision: str = "float32") -> None:
        """precision: of the computation: float32, bfloat16 or float16; the processor must have it to gain by it.

        Raises UsageError.
        """
        os.environ.setdefault("OPENVINO_TELEMETRY_DISABLE", "1")  # before OpenVINO is imported
        import openvino  # an extra

        self.path = Path(path)
        settings: dict[str, str | int] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
        }
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        model = _opened(self.path, lambda: core.read_model(str(path)))
        self.facts = _facts_of(model)
        compiled = _opened(self.path, lambda: core.compile_model(model, "CPU", settings))
        self.inputs: dict[str, Shape] = {
            _own_name(one): tuple(None if side.is_dynamic else side.get_length() for side in one.get_partial_shape())
            for one in compiled.inputs
        }
        self._outputs = [_own_name(one) for one in compiled.outputs]
        self._request = compiled.create_infer_request()

    def __call__(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        # copies, because the request's own arrays are written over by its next inference
        results = self._request.infer(feeds)
        return {name: np.array(results[i]) for i, name in enumerate(self._outputs)}


def _own_name(end: "openvino.ConstOutput") -> str:
    """The name that the export gave to an input or output; a cast behind it that does nothing leaves its own too."""
    return min(end.get_names(), key=lambda name: ("/" in name, name))


def _facts_of(model: "openvino.Model") -> dict[str, str]:
    """What OpenVINO keeps of a file's own facts."""
    kept = model.get_rt_info()
    return {name: value.astype(str) for name, value in kept["framework"].items()} if "framework" in kept else {}


def _opened(path: Path, open_it: Callable):
    if not path.is_file():
        raise UsageError(f"{path}: not found; export it with sam-med2d export-encoder or sam-med2d export-decoder")
    try:
        return open_it()
    except Exception as error:  # each runtime raises its own kinds, for damaged files and unknown operators alike
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(f"{path}: cannot be opened ({reason}); export it again") from error


class RuntimeEncoder:
    """images -> embeddings, as `Sam.encode`."""

    def __init__(self, session: Session) -> None:
        """Raises UsageError: not an encoder, or one with the geometry inside."""
        shape = session.inputs.get("input_image")
        if shape is None:
            raise UsageError(
                f"{session.path}: has no input_image, so it is no encoder; export one with sam-med2d export-encoder"
            )
        if len(shape) != 4:
            raise UsageError(
                f"{session.path}: was exported with --use-preprocess, for programs that hand in whole images; "
                "export it without"
            )
        self.session = session
        self.batch, self.image_size = shape[0], fixed(shape[-1], session.path)
        self.frame = session.facts.get("frame", SAM_MED2D)  # older files tell nothing else
        self.pixel_mean, self.pixel_std = (torch.tensor(values).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))

    def ready(self, images: Tensor, content: Tensor | None = None) -> Tensor:
        """As `Sam.prepared`."""
        ordered = images.flip(1) if self.frame == SAM else images
        return normalised(ordered, content, self.pixel_mean, self.pixel_std)

    def encode(self, images: Tensor, content: Tensor | None = None) -> Tensor:
        """images: (B, 3, S, S) uint8, BGR; content as in `Sam.preprocess` -> (B, 256, S / 16, S / 16)."""
        ready = self.ready(images, content).numpy()
        steps = [ready[i : i + self.batch] for i in range(0, len(ready), self.batch)] if self.batch else [ready]
        return torch.from_numpy(
            np.concatenate([self.session({"input_image": step})["image_embeddings"] for step in steps])
        )


def fixed(side: int | None, path: Path) -> int:
    """The side of an input that must not be left open. Raises UsageError where it is."""
    if side is None:
        raise UsageError(f"{path}: leaves the size of its input open; export it with this project's export scripts")
    return side


class RuntimeDecoder:
    """embeddings and prompts -> prediction, as `Sam.predict`."""

    def __init__(self, session: Session) -> None:
        """Raises UsageError: not a decoder."""
        if set(session.inputs) != DECODER_INPUTS:
            raise UsageError(
                f"{session.path}: has not the inputs of a decoder; export one with sam-med2d export-decoder"
            )
        self.session = session
        self.image_size = 4 * fixed(session.inputs["mask_input"][-1], session.path)
        # of a frame whose mask prompts are probabilities
        self.takes_logits = session.facts.get("mask_input") == LOGITS and session.facts.get("frame") != SAM

    def predict(self, embeddings: Tensor, prompts: Prompts, multimask_output: bool | None) -> Prediction:
        """As `Sam.predict`. Raises UsageError where a file of the best mask alone is asked for another one."""
        if self.takes_logits and prompts.masks is not None:
            prompts = prompts._replace(masks=logits_of(prompts.masks))
        found = self.session(decoder_inputs(embeddings, prompts, (1, 1)))  # full-size masks are not wanted
        prediction = Prediction(*(torch.from_numpy(found[name]) for name in ("low_res_masks", "iou_predictions")))
        if prediction.iou.shape[1] == 1:
            if not multimask_output:
                raise UsageError(
                    f"{self.session.path}: holds the best of outputs 1 to 3 alone; export it without "
                    "--return-single-mask"
                )
            return prediction
        outputs = slice(None) if multimask_output is None else MULTIPLE if multimask_output else SINGLE
        return Prediction(prediction.logits[:, outputs], prediction.iou[:, outputs])


def logits_of(probabilities: Tensor) -> Tensor:
    """For a decoder that takes the sigmoid itself."""
    return probabilities.float().logit(eps=1e-6)


def decoder_inputs(embeddings: Tensor, prompts: Prompts, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Prompts of `Sam.predict` -> what the decoder's graph reads. size: height and width of its `masks`."""
    rows = next(len(p) for p in prompts if p is not None)
    points, labels = torch.zeros(rows, 0, 2), torch.zeros(rows, 0)
    if prompts.points is not None and prompts.labels is not None:
        points, labels = prompts.points.float(), prompts.labels.float()
        if prompts.boxes is None:  # the model's own rule; the graph follows it for clients that do not
            points = torch.cat([points, torch.zeros(rows, 1, 2)], dim=1)
            labels = torch.cat([labels, torch.full((rows, 1), float(ABSENT))], dim=1)
    if prompts.boxes is not None:
        points = torch.cat([points, prompts.boxes.float().reshape(-1, 2, 2)], dim=1)
        labels = torch.cat([labels, labels_of_corners(prompts.boxes).float()], dim=1)
    side = 4 * embeddings.shape[-1]
    masks = torch.zeros(1, 1, side, side) if prompts.masks is None else prompts.masks.float()
    return {
        "image_embeddings": embeddings.numpy(),
        "point_coords": points.numpy(),
        "point_labels": labels.numpy(),
        "mask_input": masks.numpy(),
        "has_mask_input": np.array([prompts.masks is not None], np.float32),
        "orig_im_size": np.array(size, np.float32),
    }


class RuntimeRefinement:
    """The refinement network, as `Sam.refined`; what it keeps of a picture is the picture, normalised."""

    def __init__(self, session: Session, choosing: float = 0.0) -> None:
        """choosing: as of a refinement network of PyTorch. Raises UsageError: another file."""
        if set(session.inputs) != REFINEMENT_INPUTS:
            raise UsageError(
                f"{session.path}: has not the inputs of a refinement network; export-decoder writes one beside "
                "the decoder of a model that has it"
            )
        self.session = session
        self.image_size = fixed(session.inputs["strokes"][-1], session.path)
        self.choosing = torch.tensor([choosing])

    def refined(self, details: Tensor, prediction: Prediction, prompts: Prompts) -> Prediction:
        """details: (N, 3, S, S), each object's picture; logits (N, K, S/4, S/4) -> (N, K, S, S)."""
        one = details[:1] if details.stride(0) == 0 else details  # one picture for all
        given = decoder_inputs(prediction.logits, prompts, (1, 1))
        side = self.image_size
        strokes = torch.zeros(1, 2, side, side) if prompts.strokes is None else prompts.strokes.float()
        none = np.zeros((1, 1, side // 4, side // 4), np.float32)
        mask = none if prompts.masks is None else prompts.masks.float().numpy()
        feeds = {
            "input_image": one.contiguous().numpy(),
            "point_coords": given["point_coords"],
            "point_labels": given["point_labels"],
            "mask_input": mask,
            "has_mask_input": np.zeros(1, np.float32) if prompts.masks is None else np.ones(len(mask), np.float32),
            "strokes": strokes.numpy(),
        }
        outputs = [
            self.session({**feeds, "low_res_masks": logits.float().contiguous().numpy()})["refined_masks"]
            for logits in prediction.logits.split(1, dim=1)
        ]
        return Prediction(torch.from_numpy(np.concatenate(outputs, axis=1)), prediction.iou)


class RuntimeSam:
    """The interface of `Sam` over exported files, on the CPU."""

    device = torch.device("cpu")

    def __init__(self, encoder: Session, decoder: Session, refinement: Session | None = None) -> None:
        """Raises UsageError: files that are not what they should be, or that do not fit each other."""
        self._encoder, self._decoder = RuntimeEncoder(encoder), RuntimeDecoder(decoder)
        self.encode, self.predict = self._encoder.encode, self._decoder.predict
        self.image_size, self.frame = self._encoder.image_size, self._encoder.frame
        self.window = window_in(Path(encoder.path), encoder.facts.get(WINDOW))
        if self._decoder.image_size != self.image_size:
            raise UsageError(
                f"{decoder.path}: is for {self._decoder.image_size} px, but {encoder.path} for {self.image_size}; "
                "export both with one --image_size"
            )

        has = decoder.facts.get(REFINED) == "True"
        choosing = float(decoder.facts.get(CHOOSING) == "1")  # older files tell nothing
        self.refinement = None if refinement is None else RuntimeRefinement(refinement, choosing)
        if self.refinement is None and has:
            print(
                f"warning: {decoder.path} is of a model with a refinement network, which is left out; name its file "
                "with --refinement_model",
                file=sys.stderr,
            )
        if self.refinement is not None and not has:
            raise UsageError(
                f"{decoder.path}: is of a model without a refinement network, so {self.refinement.session.path} is of "
                "another one; export both from one checkpoint"
            )
        if self.refinement is not None and self.refinement.image_size != self.image_size:
            raise UsageError(
                f"{self.refinement.session.path}: is for {self.refinement.image_size} px, but {encoder.path} for "
                f"{self.image_size}; export all with one --image_size"
            )

    def details(self, images: Tensor, content: Tensor | None = None) -> Tensor:
        """What the refinement network reads of pictures, as `Sam.details`: (B, 3, S, S)."""
        return self._encoder.ready(images, content)

    def refined(self, details: Tensor, prediction: Prediction, prompts: Prompts) -> Prediction:
        """As `Sam.refined`."""
        assert self.refinement is not None, "asked of a model that has the part"
        return self.refinement.refined(details, prediction, prompts)

    upscale = Sam.upscale  # it needs no more than image_size

    def eval(self) -> "RuntimeSam":
        """Exported graphs have no other mode."""
        return self


def open_session(backend: str, path: str | Path, threads: int | None = None, precision: str = "float32") -> Session:
    """Raises UsageError."""
    if backend == "openvino":
        return OpenVinoSession(path, threads, precision)
    if precision != "float32":
        raise UsageError(
            f"onnxruntime computes in the file's own precision on a CPU; {precision} needs --backend openvino"
        )
    return OnnxRuntimeSession(path, threads)


def open_runtime(
    backend: str,
    encoder: str | Path,
    decoder: str | Path,
    refinement: str | Path | None = None,
    *,
    threads: int | None = None,
    precision: str = "float32",
) -> RuntimeSam:
    """backend: one of BACKENDS; precision: of the encoder's computation, that of the others is always float32.

    Raises UsageError.
    """
    return RuntimeSam(
        open_session(backend, encoder, threads, precision),
        open_session(backend, decoder, threads),
        open_session(backend, refinement, threads) if refinement else None,
    )
