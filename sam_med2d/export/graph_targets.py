"""Targets that are ONNX graphs: pairs of an encoder and a decoder."""

from collections.abc import Callable, Mapping

import onnx
import torch

from sam_med2d.errors import UsageError
from sam_med2d.export.clients import Client, Clients1024, PredictorClient, XAnyLabeling
from sam_med2d.export.frame1024 import PADDED, WHOLE, Encoder1024, decoder_1024
from sam_med2d.export.graphs import DecoderGraph, EncoderGraph
from sam_med2d.export.job import Job
from sam_med2d.export.onnx_files import (
    describe,
    placed,
    save,
    trace_decoder,
    trace_decoder_1024,
    trace_encoder,
    trace_encoder_1024,
)
from sam_med2d.export.parity import PARITY, difference
from sam_med2d.inference.backends import LOGITS, PROBABILITIES, OnnxRuntimeSession, RuntimeSam, Session
from segment_anything import SamPredictor
from segment_anything.files import replacing
from segment_anything.frames import SAM, SAMS_SIZE
from segment_anything.geometry import EXACT
from segment_anything.zoom import NEVER


def write_onnx(job: Job) -> Client:
    decoder = DecoderGraph(job.model, single_mask=True, logits_in=job.logits_in)
    facts = {"protocol": EXACT, "single_mask": True, "mask_input": LOGITS if decoder.logits_in else PROBABILITIES}
    sessions = _write_pair(job, EncoderGraph(job.model), decoder, (trace_encoder, trace_decoder), facts)
    return PredictorClient(SamPredictor(RuntimeSam(*sessions), zoom=NEVER))


def write_x_anylabeling(job: Job) -> Client:
    if job.model.frame == SAM:
        raise UsageError(
            "--target x-anylabeling: its model sam_med2d shows pictures in SAM-Med2D's frame, and this is in SAM's; "
            f"take --target sam1024 --encoder_input {WHOLE}, which its model segment_anything opens"
        )
    # the tool stretches a picture to whatever size a graph declares: of 1024 px more is left for the model to see than
    # of its own few, which are taken out of it inside
    encoder, decoder = Encoder1024(job.model), decoder_1024(job.model, padded=False)
    facts = {"input": PADDED, "mask_input": LOGITS}
    sessions = _write_pair(job, encoder, decoder, (trace_encoder_1024, trace_decoder_1024), facts)
    _write_yaml(job, "sam_med2d", SAMS_SIZE)
    return XAnyLabeling(*sessions)


def write_sam1024(job: Job) -> Client:
    encoder, decoder = Encoder1024(job.model, job.reads), decoder_1024(job.model)
    facts = {"input": job.reads, "mask_input": LOGITS}
    sessions = _write_pair(job, encoder, decoder, (trace_encoder_1024, trace_decoder_1024), facts)
    if job.reads == WHOLE:
        _write_yaml(job, "segment_anything", SAMS_SIZE, max_width=SAMS_SIZE, max_height=682)
    return Clients1024(*sessions)


def _write_pair(
    job: Job,
    encoder: torch.nn.Module,
    decoder: torch.nn.Module,
    trace: tuple[Callable, Callable],
    facts: Mapping[str, object],
) -> tuple[Session, Session]:
    """Both files, each after its comparison with the module it was traced from. Raises UsageError: it differs."""
    sessions: list[Session] = []
    known = {"image_size": job.model.image_size, "frame": job.model.frame, "channels": job.model.image_format}
    for part, graph, write in zip(("encoder", "decoder"), (encoder, decoder), trace):
        path = job.folder / f"{job.name}.{part}.onnx"
        with placed(path) as temporary:
            proto: onnx.ModelProto = write(graph, job.opset)
            describe(proto, part=part, **{**known, **facts})
            save(proto, temporary)
            session = OnnxRuntimeSession(temporary)
            largest = _largest_difference(graph, session)
            if not largest <= PARITY:
                raise UsageError(f"{path}: not written, because it differs from PyTorch by {largest:.1e}")
        print(f"{path}: largest difference from PyTorch {largest:.1e}")
        sessions.append(OnnxRuntimeSession(path))
    return sessions[0], sessions[1]


@torch.inference_mode()
def _largest_difference(graph: torch.nn.Module, session: Session) -> float:
    """Of any output, between the file and the module it was traced from: of a picture, or of two objects' clicks."""
    draw = torch.Generator().manual_seed(0)
    feeds = {name: torch.rand([side or 1 for side in shape], generator=draw) for name, shape in session.inputs.items()}
    if WHOLE in feeds and feeds[WHOLE].dim() == 3:
        feeds[WHOLE] = torch.rand(300, SAMS_SIZE, 3, generator=draw) * 255
    if "point_coords" in feeds:
        feeds["point_coords"] = torch.rand(2, 3, 2, generator=draw) * 4 * feeds["mask_input"].shape[-1]
        feeds["point_labels"] = torch.tensor([[1.0, 0, 1], [1, 1, 0]])
        feeds["orig_im_size"] = torch.tensor([90.0, 120.0])
        feeds["image_embeddings"][0, :2, -1, -1] = torch.tensor([768.0, 1024.0])  # where such a picture ends
    found = session({name: value.numpy() for name, value in feeds.items()})
    wanted = graph.eval()(*feeds.values())
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    return max(difference(one, other.numpy()) for one, other in zip(found.values(), wanted))


def _write_yaml(job: Job, kind: str, side: int, **more: int) -> None:
    lines = {
        "type": kind,
        "name": job.name,
        "provider": "sam-med2d",
        "display_name": job.name,
        "encoder_model_path": f"{job.name}.encoder.onnx",
        "decoder_model_path": f"{job.name}.decoder.onnx",
        "input_size": side,
        **more,
    }
    text = "".join(f"{name}: {value}\n" for name, value in lines.items())
    with replacing(job.folder / f"{job.name}.yaml") as temporary:
        temporary.write_text(text, encoding="utf-8")
