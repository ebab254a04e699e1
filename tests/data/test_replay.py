"""Pictures of other kinds beside the trained ones: as many as asked for, drawn by their place alone."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from sam_med2d.data.datasets import TrainingDataset, train_loader
from sam_med2d.data.phantoms import PHANTOMS
from sam_med2d.data.samplers import EpochSampler
from sam_med2d.errors import DataError
from tests.data.test_balance import make

SIZE = 64


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    return make(tmp_path / "cells", {f"cell_{i}.png": [f"cell_{i}_mask.png"] for i in range(10)})


@pytest.fixture
def bones(tmp_path: Path) -> Path:
    return make(tmp_path / "bones", {f"bone_{i}.png": [f"bone_{i}_mask.png"] for i in range(4)})


def shown(dataset: TrainingDataset, epoch: int, start: int = 0, workers: int = 0) -> list[list[str]]:
    """The names of the images of each batch of an epoch."""
    loader = train_loader(dataset, batch_size=3, num_workers=workers, seed=5)
    loader.batch_sampler.set_epoch(epoch, start)
    return [batch.image_names for batch in loader]


def test_an_epoch_shows_all_trained_images_once_and_the_share_of_others(cells: Path, bones: Path) -> None:
    dataset = TrainingDataset(cells, SIZE, seed=5, replay=[PHANTOMS, bones], replay_share=0.5)
    assert len(dataset) == 15
    epochs = [shown(dataset, epoch) for epoch in range(8)]
    for batches in epochs:
        assert [len(batch) for batch in batches] == [3] * 5
        names = Counter(name for batch in batches for name in batch)
        assert all(names[f"cell_{i}.png"] == 1 for i in range(10))
        assert sum(names.values()) == 15
    others = Counter(name for batches in epochs for batch in batches for name in batch if not name.startswith("cell"))
    assert 8 < others[PHANTOMS] < 32, "both sources are drawn, of 40 pictures"
    assert {*others} == {PHANTOMS, *(f"bone_{i}.png" for i in range(4))}
    places = {tuple(name == PHANTOMS for batch in batches for name in batch) for batches in epochs}
    assert len(places) > 1, "strewn among the others, elsewhere in each epoch"


def test_what_is_drawn_is_a_function_of_the_place(cells: Path, bones: Path) -> None:
    make_it = lambda: TrainingDataset(cells, SIZE, seed=5, replay=[PHANTOMS, bones], replay_share=0.5)
    dataset = make_it()
    first = dataset[2, 12]
    dataset[0, 11], dataset[2, 3]
    again = make_it()[2, 12]
    assert torch.equal(first.image, again.image) and torch.equal(first.masks, again.masks)
    assert not torch.equal(first.image, dataset[3, 12].image) or first.image_name != dataset[3, 12].image_name
    assert shown(dataset, 1, start=2) == shown(dataset, 1)[2:]
    assert shown(dataset, 1, workers=2) == shown(dataset, 1)


def test_phantoms_have_the_asked_size_and_objects(cells: Path) -> None:
    sample = TrainingDataset(cells, SIZE, mask_num=4, replay=[PHANTOMS])[0, 10]
    assert sample.image.shape == (3, SIZE, SIZE) and sample.masks.shape == (4, 1, SIZE, SIZE)
    assert sample.masks.flatten(1).any(1).all() and len(sample.mask_names) == 4


def test_without_replay_nothing_changes(cells: Path) -> None:
    assert [*EpochSampler(10, 3, seed=5)] == [*EpochSampler(10, 3, seed=5, replayed=0)]
    assert TrainingDataset(cells, SIZE).replayed == 0


def test_other_data_without_an_index_is_refused_before_training(cells: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        TrainingDataset(cells, SIZE, replay=[tmp_path / "nowhere"])
