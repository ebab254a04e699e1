"""Files for other tools, by the names that `sam-med2d export --target` takes. docs/interop.md lists the tools.

A target writes its files and gives the client that reads them, which is then compared with the eager model.
"""

from collections.abc import Callable
from typing import NamedTuple

from sam_med2d.errors import UsageError
from sam_med2d.export.clients import Client, compare
from sam_med2d.export.graph_targets import write_onnx, write_sam1024, write_x_anylabeling
from sam_med2d.export.job import Job, said
from sam_med2d.export.monai_app import write_monai
from sam_med2d.export.weight_targets import write_isat, write_sam_pth, write_transformers
from segment_anything.files import replacing


class Target(NamedTuple):
    """summary: of what it is, for lists. write: raises UsageError for a model that the target cannot hold. place: for
    people, where the files go, in Markdown.
    """

    summary: str
    write: Callable[[Job], Client]
    place: str


TARGETS = {
    "onnx": Target(
        "an encoder and a decoder for ONNX Runtime and OpenVINO, as clients of SAM-Med2D read them",
        write_onnx,
        "`sam-med2d predict --backend onnxruntime --encoder_model {name}.encoder.onnx --decoder_model "
        "{name}.decoder.onnx --input IMAGE --box X0 Y0 X1 Y1`, or any client of SAM-Med2D's ONNX files.",
    ),
    "x-anylabeling": Target(
        "files and YAML for X-AnyLabeling's model sam_med2d",
        write_x_anylabeling,
        "In X-AnyLabeling: AI, the list of models, ...Load Custom Model, and choose `{name}.yaml`. The two ONNX files "
        "stay beside it.",
    ),
    "isat": Target(
        "a .pth for ISAT's SAM-Med2D: vit_b, 256 px, adapters",
        write_isat,
        "Put the `.pth` into ISAT's folder of checkpoints (SAM, Model manage, shows it) and choose it under SAM. Its "
        "name has to keep `med2d`, by which ISAT knows what it is.",
    ),
    "sam1024": Target(
        "an encoder and a decoder in SAM's 1024 px frame, around any model: labelme, AnyLabeling, samexporter",
        write_sam1024,
        "- osam, with which labelme segments: a class with these two files, which docs/interop.md has.\n"
        "- samexporter: `python -m samexporter.inference --encoder_model {name}.encoder.onnx --decoder_model "
        "{name}.decoder.onnx --image IMAGE --prompt PROMPT.json --output RESULT.png`.\n"
        "- AnyLabeling, and X-AnyLabeling's model segment_anything: export with `--encoder_input input_image`, and "
        "load `{name}.yaml` as a custom model.",
    ),
    "sam-pth": Target(
        "plain SAM weights at 1024 px, for tools that load them strictly",
        write_sam_pth,
        "Wherever a tool asks for SAM's checkpoint: `sam_model_registry[...](checkpoint=...)`, micro-sam's "
        "`get_sam_model(checkpoint_path=...)`, samgeo's `SamGeo(checkpoint=...)`.",
    ),
    "monai": Target(
        "an app folder for MONAI Label's own server",
        write_monai,
        'In an environment with `monailabel` and this project (`pip install "sam-med2d[serve]"`): `monailabel '
        "start_server --app FOLDER --studies STUDIES`. `sam-med2d serve` answers 3D Slicer and OHIF without it.",
    ),
    "transformers": Target(
        "a folder that Hugging Face's SamModel opens",
        write_transformers,
        "`SamModel.from_pretrained(FOLDER)` and `SamProcessor.from_pretrained(FOLDER)`. And back: "
        "`--sam_checkpoint FOLDER/model.safetensors` of every command here.",
    ),
}


WITH_REFINEMENT = ("monai",)  # targets that run this package; what others show would be another model's answers


def target_of(name: str) -> Target:
    """Raises UsageError: there is none of that name."""
    if name not in TARGETS:
        raise UsageError(f"--target {name}: there is no such target; choose one of {', '.join(TARGETS)}")
    return TARGETS[name]


def export(name: str, job: Job) -> dict[str, float]:
    """Write a target's files and its README.md -> mean Dice to the eager model, {kind of prompt: Dice}.

    Raises UsageError: no such target, or weights that it cannot hold.
    """
    target = target_of(name)
    if job.model.refinement is not None and name not in WITH_REFINEMENT:
        raise UsageError(f"--target {name}: has no place for a refinement network; leave it out with --refine False")
    client = target.write(job)
    dices = compare(job.model, client, job.images)
    told = ", ".join(f"{kind} {mean:.4f}" for kind, mean in dices.items())
    with replacing(job.folder / "README.md") as temporary:
        temporary.write_text(
            f"# {job.name} for other tools: {name}\n\n{target.summary[0].upper()}{target.summary[1:]}.\n"
            f"The model: {said(job.model)}.\n\n{target.place.format(name=job.name)}\n\n"
            f"Dice to the model in PyTorch, through the client's own preprocessing, of random prompts on "
            f"{len(job.images)} images: {told}.\n",
            encoding="utf-8",
        )
    print(f"{job.folder / 'README.md'}: where to put the files")
    return dices
