"""What an exported file answers, compared with PyTorch on real images."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sam_med2d.data.datasets import TestingDataset, test_loader
from sam_med2d.evaluation.evaluate import evaluate
from sam_med2d.evaluation.metrics import dice
from sam_med2d.export.graphs import DecoderGraph
from sam_med2d.inference.backends import RuntimeRefinement, Session, decoder_inputs, logits_of
from sam_med2d.prompts.modes import parse_mode
from segment_anything import FOREGROUND, Prediction, Prompts, Sam, SamPredictor, best_of
from segment_anything.frames import SAM
from segment_anything.geometry import EXACT, back
from segment_anything.predictor import frame_of
from segment_anything.utils.onnx import stability_of
from segment_anything.zoom import NEVER

TABLE_MODES = ("bbox", "1pt", "3pts")

PARITY = 1e-4  # largest difference that a float32 file may have; of numbers above 1, as a share of the largest

PROMPT_KINDS = ("box", "point", "points", "box + point", "mask", "box + mask", "points + mask")


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest, as a share of the largest number that is expected where that is above 1: float32 knows 7 digits."""
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))


def encoder_difference(model: Sam, session: Session, images: list[np.ndarray]) -> float:
    """The largest difference of any embedding. images: (H, W, 3) BGR, of any sizes."""
    predictor, largest = SamPredictor(model, zoom=NEVER), 0.0
    for image in images:
        predictor.set_image(image, "BGR")
        found = session(encoder_inputs(model, session, image))["image_embeddings"]
        largest = max(largest, difference(found[0], predictor.get_image_embedding()[0].cpu().numpy()))
    return largest


def encoder_inputs(model: Sam, session: Session, image: np.ndarray) -> dict[str, np.ndarray]:
    """A BGR image -> what the encoder's graph reads."""
    if len(session.inputs["input_image"]) == 3:
        return {"input_image": image.astype(np.float32)}
    frame, content = SamPredictor(model, zoom=NEVER).framed(image)
    return {"input_image": model.prepared(frame.to(model.device), content).cpu().numpy()}


def prompts_of(kind: str, objects: int, image_size: int, seed: int = 0) -> Prompts:
    """Random prompts of one of PROMPT_KINDS in the S x S frame."""
    draw = torch.Generator().manual_seed(seed)
    boxes = (torch.rand(objects, 2, 2, generator=draw).sort(dim=1).values * image_size).flatten(1)
    points = torch.rand(objects, 5 if "points" in kind else 1, 2, generator=draw) * image_size
    labels = torch.randint(0, 2, points.shape[:2], generator=draw)
    labels[:, 0] = FOREGROUND
    masks = torch.rand(objects, 1, image_size // 4, image_size // 4, generator=draw)
    clicked = "point" in kind
    return Prompts(
        points if clicked else None,
        labels if clicked else None,
        boxes if "box" in kind else None,
        masks if "mask" in kind else None,
    )


def decoder_differences(
    model: Sam, graph: DecoderGraph, session: Session, images: list[np.ndarray], objects: tuple[int, ...] = (1, 8)
) -> dict[str, dict[str, float]]:
    """{kind of prompt: {output: largest difference}} between the file and the eager model.

    Of one set of random prompts for each image, kind and number of objects; masks are compared at the image's size.
    """
    predictor = SamPredictor(model, zoom=NEVER)
    differences: dict[str, dict[str, float]] = {kind: {} for kind in PROMPT_KINDS}
    for number, image in enumerate(images):
        predictor.set_image(image, "BGR")
        embedding = predictor.get_image_embedding()
        for kind in PROMPT_KINDS:
            for rows in objects:
                prompts = prompts_of(kind, rows, model.image_size, number)
                expected = eager_outputs(
                    model, graph, embedding.expand(rows, -1, -1, -1), prompts.to(model.device), image.shape[:2]
                )
                found = session(decoder_inputs(embedding.cpu(), given(graph, prompts), image.shape[:2]))
                for name, value in expected.items():
                    apart = difference(found[name], value.cpu().numpy())
                    differences[kind][name] = max(differences[kind].get(name, 0.0), apart)
    return differences


@torch.inference_mode()
def refinement_difference(
    model: Sam, session: Session, images: list[np.ndarray], objects: tuple[int, ...] = (1, 4)
) -> float:
    """The largest difference of any refined logit, for random answers, prompts of every kind and strokes."""
    runtime, predictor, largest = RuntimeRefinement(session), SamPredictor(model), 0.0
    side = model.image_size
    for number, image in enumerate(images):
        frame = torch.from_numpy(predictor.transform.apply_image(image).transpose(2, 0, 1)[None].copy())
        details, ready = model.details(frame.to(model.device)), model.preprocess(frame.to(model.device)).cpu()
        assert details is not None, "asked of a model that has the part"
        for kind in PROMPT_KINDS:
            for rows in objects:
                prompts, draw = prompts_of(kind, rows, side, number), torch.Generator().manual_seed(rows)
                if number % 2:
                    prompts = prompts._replace(strokes=torch.rand(rows, 2, side, side, generator=draw) > 0.99)
                logits = torch.randn(rows, 2, side // 4, side // 4, generator=draw)
                answer = Prediction(logits, torch.zeros(rows, 2))
                expected = model.refined(
                    details.expand(rows, -1, -1, -1),
                    Prediction(*(part.to(model.device) for part in answer)),
                    prompts.to(model.device),
                ).logits
                found = runtime.refined(ready.expand(rows, -1, -1, -1), answer, prompts).logits
                largest = max(largest, difference(found.numpy(), expected.cpu().numpy()))
    return largest


def given(graph: DecoderGraph, prompts: Prompts) -> Prompts:
    """Prompts of `Sam.predict` -> as the graph takes them."""
    if prompts.masks is None or not graph.logits_in or graph.frame == SAM:
        return prompts
    return prompts._replace(masks=logits_of(prompts.masks))


@torch.inference_mode()
def eager_outputs(
    model: Sam, graph: DecoderGraph, embeddings: Tensor, prompts: Prompts, size: tuple[int, int]
) -> dict[str, Tensor]:
    """What the file should return, by the functions that training and testing call."""
    prediction = model.predict(embeddings, prompts, True if graph.single_mask else None)
    if graph.stability_score:
        prediction = Prediction(prediction.logits, stability_of(prediction.logits))
    if graph.single_mask:
        prediction = best_of(prediction)
    masks = model.upscale(prediction.logits)
    if graph.longest_side:
        scale = model.image_size / max(size)
        masks = masks[..., : int(size[0] * scale + 0.5), : int(size[1] * scale + 0.5)]
    masks = back(masks, size, paper=graph.paper or graph.longest_side)
    return {"masks": masks, "iou_predictions": prediction.iou, "low_res_masks": prediction.logits}


def agreement(model: Sam, other: Sam, images: list[np.ndarray], protocol: str = EXACT) -> float:
    """Mean Dice between the masks of two models, for 8 random boxes an image: of outputs 1 to 3, or of the best where a
    file has no other."""
    values = []
    for number, image in enumerate(images):
        found, predictors = [], []
        for one in (model, other):
            predictors.append(SamPredictor(one, protocol, NEVER))
            predictors[-1].set_image(image, "BGR")
            found.append(predictors[-1].decode(prompts_of("box", 8, model.image_size, number), True))
        if found[0].iou.shape != found[1].iou.shape:
            found = [best_of(prediction) for prediction in found]
        masks = [predictor.upscale(prediction.logits) > 0 for predictor, prediction in zip(predictors, found)]
        values.append(dice(masks[0], masks[1], from_logits=False).mean().item())
    return float(np.mean(values))


def dice_table(
    models: dict[str, Sam], data_path: str | Path, image_size: int, protocol: str = EXACT
) -> dict[str, dict[str, float]]:
    """Print and return the mean Dice in per cent, {model: {prompt mode: Dice}}, on the test split of a data folder.

    Raises DataError: the folder has no index.
    """
    modes = [parse_mode(name) for name in TABLE_MODES]
    dataset = TestingDataset(data_path, image_size, "test", frame_of(next(iter(models.values()))))
    batches = list(test_loader(dataset, 1, 0))
    table: dict[str, dict[str, float]] = {}
    for name, model in models.items():
        values: dict[str, list[float]] = {mode.name: [] for mode in modes}
        for _, scored in evaluate(model, batches, modes, device=model.device, protocol=protocol):
            for one in scored:
                values[one.mode.name] += one.values["dice"]
        table[name] = {mode: 100 * float(np.mean(dices)) for mode, dices in values.items()}
    print(f"Dice on {dataset.index.mask_count} objects of {data_path}")
    print(f"{'':24}" + "".join(f"{mode:>8}" for mode in TABLE_MODES))
    for name, row in table.items():
        print(f"{name:24}" + "".join(f"{value:8.2f}" for value in row.values()))
    return table
