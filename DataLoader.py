"""From a JSON index to batches.

This file is a door: what it hands on lives in sam_med2d/data/ (index, reading, geometry, augmentation, batch, datasets,
samplers, cache).

    from DataLoader import TrainingDataset, train_loader
"""

from sam_med2d.data.augmentation import build_augmentation
from sam_med2d.data.batch import Batch, Sample, collate
from sam_med2d.data.datasets import TestingDataset, TrainingDataset, scoring_sample, shrunk, test_loader, train_loader
from sam_med2d.data.geometry import Content, fit
from sam_med2d.data.index import Index, read_index
from sam_med2d.data.reading import read_image, read_mask
from sam_med2d.data.samplers import BalancedSampler, EpochSampler
from sam_med2d.errors import DataError

__all__ = [
    "BalancedSampler",
    "Batch",
    "Content",
    "DataError",
    "EpochSampler",
    "Index",
    "Sample",
    "TestingDataset",
    "TrainingDataset",
    "build_augmentation",
    "collate",
    "fit",
    "read_image",
    "read_index",
    "read_mask",
    "scoring_sample",
    "shrunk",
    "test_loader",
    "train_loader",
]
