"""Targets that are weights under the names of others."""

import json
from pathlib import Path

from torch import Tensor

from sam_med2d.errors import UsageError
from sam_med2d.export.clients import Client, PredictorClient
from sam_med2d.export.job import Job, model_type_of, said
from segment_anything import Sam, SamPredictor, sam_model_registry
from segment_anything.checkpoint import WeightFile, check_is_sam, fit_weights, open_weights, save_weights
from segment_anything.files import replacing
from segment_anything.frames import SAM, SAM_MED2D, SAMS_SIZE, described
from segment_anything.geometry import EXACT, PAPER
from segment_anything.modeling.sam import PIXEL_MEAN, PIXEL_STD
from segment_anything.sizes import SIZES
from segment_anything.weight_files import FRAME, save_checkpoint
from segment_anything.weight_names import to_hugging_face
from segment_anything.zoom import NEVER

NAMES_OF_OTHERS = ("sam_vit", "sam2", "sam3", "mobile_sam", "edge_sam", "sam_hq_vit")  # by which ISAT tells models
ISATS_SIZE = 256  # pixels
PLAIN = ("vit_b", "vit_l", "vit_h")  # that tools for SAM have names for


def write_isat(job: Job) -> Client:
    model = job.model
    wanted = f"vit_b, {ISATS_SIZE} px, adapters, in {described(SAM_MED2D)}"
    if (model_type_of(model), model.image_size, model.frame) != ("vit_b", ISATS_SIZE, SAM_MED2D):
        raise UsageError(
            f"--target isat: ISAT's model is {wanted}, and this one is {said(model)}; --image_size {ISATS_SIZE} makes "
            "that of another size, and what else differs goes there as --target sam-pth"
        )
    if not model.image_encoder.adapters():
        raise UsageError(
            f"--target isat: ISAT's model is {wanted}, and this one has no adapters; say --encoder_adapter True, whose "
            "new ones add nothing"
        )
    path = job.folder / f"{isats_name(job.name)}.pth"
    save_checkpoint({"model": model.state_dict()}, path)
    print(f"{path}: {said(model)}, under the key 'model'")
    return _client(path, SAM_MED2D, PAPER)


def isats_name(name: str) -> str:
    """A file name, without its ending, by which ISAT takes the file for a SAM-Med2D."""
    for other in NAMES_OF_OTHERS:
        name = name.replace(other, other.replace("_", "-").replace("sam", "s"))
    return name if "med2d" in name else f"{name}_med2d"


def write_sam_pth(job: Job) -> Client:
    weights = plain_weights(job.model, "sam-pth")
    model_type = model_type_of(job.model)
    if model_type not in PLAIN:
        raise UsageError(
            f"--target sam-pth: tools for SAM know {', '.join(PLAIN)}, and this model is {said(job.model)}; take "
            "--target sam1024"
        )
    plain = sam_model_registry[model_type](image_size=SAMS_SIZE, encoder_adapter=False, frame=SAM)
    fit_weights(plain, WeightFile(Path(job.name), weights))
    path = job.folder / f"sam_{model_type}_{job.name}.pth"
    save_checkpoint(plain.state_dict(), path)
    print(f"{path}: {model_type}, {SAMS_SIZE} px, {len(weights)} tensors under SAM's names")
    _warn_of_frame(job.model)
    return _client(path, SAM, EXACT)


def write_transformers(job: Job) -> Client:
    model = job.model
    weights = to_hugging_face(plain_weights(model, "transformers"))
    path = job.folder / "model.safetensors"
    save_weights(weights, path, metadata={FRAME: model.frame})
    for name, content in (("config.json", config_of(model)), ("processor_config.json", processor_of(model))):
        with replacing(job.folder / name) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"{path}: {len(weights)} tensors under the names of Hugging Face's SamModel")
    _warn_of_frame(model)
    return _client(path, SAM, EXACT)


def config_of(model: Sam) -> dict[str, object]:
    """config.json of a SamModel folder."""
    size, side = SIZES[model_type_of(model)], model.image_size
    vision = {
        "hidden_size": size.channels,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.heads,
        "global_attn_indexes": size.global_blocks,
        "mlp_dim": 4 * size.channels,
        "image_size": side,
    }
    prompts = {"image_size": side, "image_embedding_size": side // 16}
    return {
        "architectures": ["SamModel"],
        "model_type": "sam",
        "vision_config": {"model_type": "sam_vision_model", **vision},
        "prompt_encoder_config": prompts,
        "mask_decoder_config": {},
    }


def processor_of(model: Sam) -> dict[str, object]:
    """processor_config.json of a SamModel folder: longest side, padded, as SAM's own."""
    side = model.image_size
    images = {
        "image_processor_type": "SamImageProcessor",
        "size": {"longest_edge": side},
        "pad_size": {"height": side, "width": side},
        "mask_size": {"longest_edge": side // 4},
        "mask_pad_size": {"height": side // 4, "width": side // 4},
        "image_mean": [mean / 255 for mean in PIXEL_MEAN],
        "image_std": [deviation / 255 for deviation in PIXEL_STD],
    }
    return {"processor_class": "SamProcessor", "target_size": side, "image_processor": images}


def plain_weights(model: Sam, target: str) -> dict[str, Tensor]:
    """Under SAM's own names. Raises UsageError: a model with parts that SAM has not."""
    if model.image_encoder.adapters():
        raise UsageError(
            f"--target {target}: has no place for adapters, which are layers beside SAM's; train with --tune lora or "
            "all, take --target sam1024, onnx or isat, or leave them out with --encoder_adapter False"
        )
    return model.state_dict()


def _warn_of_frame(model: Sam) -> None:
    if model.frame != SAM:
        print(
            f"warning: this model was trained in {described(model.frame)}; tools for SAM show pictures in SAM's, which "
            "the Dice below is of"
        )


def _client(path: Path, frame: str, protocol: str) -> Client:
    """What a strict loader of the file gets. Raises CheckpointError."""
    model_type = check_is_sam(open_weights(path)).model_type
    assert model_type is not None, "written here"
    model = sam_model_registry[model_type](checkpoint=path, frame=frame)
    return PredictorClient(SamPredictor(model.requires_grad_(False), protocol, NEVER))
