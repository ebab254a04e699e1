"""Training on crops around objects: where they lie, how their scales are spread, and that draws are of the place."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import train
from sam_med2d.data.closer import LEAST, drawn_crop
from sam_med2d.data.datasets import TrainingDataset, train_loader
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.frames import SAM

SIZE = 32


def test_an_object_lies_whole_in_its_crop_whose_scale_is_log_uniform() -> None:
    mask = np.zeros((400, 600), bool)
    mask[300:310, 20:40] = True
    generator = np.random.default_rng(0)
    crops = [drawn_crop(mask, generator) for _ in range(2000)]
    assert all(crop.holds(np.array([20, 300, 40, 310])) for crop in crops)
    assert all(crop.left >= 0 and crop.top >= 0 and crop.box[2] <= 600 and crop.box[3] <= 400 for crop in crops)
    share = np.log(np.array([crop.height for crop in crops]) / 10 / LEAST) / np.log(40 / LEAST)  # 400 of 10 pixels
    assert np.quantile(share, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.04)
    middles = np.array([(305 - crop.top) / crop.height for crop in crops if crop.height < 60])
    assert middles.min() < 0.3 and middles.max() > 0.7  # not always in the middle


def test_an_object_that_fills_its_picture_is_seen_in_the_whole() -> None:
    crop = drawn_crop(np.ones((30, 50), bool), np.random.default_rng(0))
    assert crop.size == (30, 50) and (crop.left, crop.top) == (0, 0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Pictures of 90 x 120 whose red and green are column and row, each with a small, a large and an empty mask."""
    rows, columns = np.mgrid[:90, :120].astype(np.uint8)
    index: dict[str, list[str]] = {}
    for number in range(6):
        image = np.stack([np.full((90, 120), number, np.uint8), rows, columns], axis=-1)
        cv2.imwrite(str(tmp_path / f"{number}.png"), image)
        index[f"{number}.png"] = []
        for name, part in (("small", np.s_[40:46, 60:68]), ("large", np.s_[10:70, 20:110]), ("empty", np.s_[:0, :0])):
            mask = np.zeros((90, 120), np.uint8)
            mask[part] = 255
            cv2.imwrite(str(tmp_path / f"{number}_{name}.png"), mask)
            index[f"{number}.png"].append(f"{number}_{name}.png")
    (tmp_path / "image2label_train.json").write_text(json.dumps(index))
    return tmp_path


def batches(data: Path, workers: int = 0, epochs: int = 2, **options) -> list:
    dataset = TrainingDataset(data, SIZE, mask_num=4, seed=3, **options)
    loader = train_loader(dataset, 2, workers, 3)
    found = []
    for epoch in range(epochs):
        loader.batch_sampler.set_epoch(epoch)
        found += list(loader)
    return found


def test_a_crop_is_a_part_of_its_picture_and_masks_are_cut_alike(data: Path) -> None:
    samples = [TrainingDataset(data, SIZE, mask_num=9, seed=3, zoom_share=1.0)[epoch, 2] for epoch in range(12)]
    spans = []
    for sample in samples:
        number, rows, columns = sample.image.numpy()
        height, width = sample.original_size
        assert (number == 2).all() and sample.content == (0, 0, SIZE, SIZE)
        assert np.ptp(rows.astype(int)) < height and np.ptp(columns.astype(int)) < width
        spans.append(height)
        for name, mask in zip(sample.mask_names, sample.masks[:, 0].numpy()):
            small = (rows >= 40) & (rows < 46) & (columns >= 60) & (columns < 68)
            large = (rows >= 10) & (rows < 70) & (columns >= 20) & (columns < 110)
            assert np.array_equal(mask, small if "small" in name else large)
        assert set(sample.skipped) <= {"2_empty.png"} and not sample.vanished
    assert min(spans) < 30 and max(spans) > 60


def test_the_frame_shows_a_crop_as_the_predictor_does(data: Path) -> None:
    sample = TrainingDataset(data, SIZE, mask_num=9, seed=3, zoom_share=1.0)[0, 2]
    _, rows, columns = sample.image.numpy().astype(int)
    image = cv2.imread(str(data / "2.png"))
    height, width = sample.original_size
    predictor = SamPredictor(sam_model_registry["vit_t"](image_size=SIZE, encoder_adapter=False))
    shown = [
        predictor.framed(image[top : top + height, left : left + width])[0][0]
        for top in range(90 - height + 1)
        for left in range(120 - width + 1)
        if top <= rows.min() and left <= columns.min()
    ]
    assert any(torch.equal(one, sample.image) for one in shown)


def test_draws_are_of_the_place_in_the_run(data: Path, tmp_path: Path) -> None:
    def images(found: list) -> list[torch.Tensor]:
        return [image for batch in found for image in batch.images]

    some = images(batches(data, zoom_share=0.5))
    for other in (batches(data, workers=1, zoom_share=0.5), batches(data, cache=tmp_path / "cache", zoom_share=0.5)):
        assert all(torch.equal(a, b) for a, b in zip(some, images(other), strict=True))
    whole = images(batches(data))
    equal = [torch.equal(a, b) for a, b in zip(some, whole, strict=True)]
    assert 0 < sum(equal) < len(equal)  # the others are those that come without the flag, and not crops
    assert not any(torch.equal(a, b) for a, b in zip(some[:6], some[6:]))


def test_in_sams_frame_too(data: Path) -> None:
    sample = TrainingDataset(data, SIZE, mask_num=9, seed=3, zoom_share=1.0, frame=SAM)[0, 2]
    assert max(sample.content[2:]) == SIZE and sample.masks.any()


def test_flags(capsys) -> None:
    assert train.parse_args(["--zoom_share", "0.3"]).zoom_share == 0.3
    for words, said in (
        (["--zoom_share", "1.5"], "--zoom_share must be between 0 and 1"),
        (["--zoom_share", "0.5", "--tune", "decoder", "--embeddings", "float16"], "--zoom_share varies the images"),
    ):
        with pytest.raises(SystemExit):
            train.parse_args(words)
        assert said in capsys.readouterr().err
