"""Dice and IoU, one value an object: they live in sam_med2d/evaluation/metrics.py."""

from sam_med2d.evaluation.metrics import METRICS, binarise, dice, iou

__all__ = ["METRICS", "binarise", "dice", "iou"]
