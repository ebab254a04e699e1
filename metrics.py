"""Dice and IoU, one value an object.

This file is a door: what it hands on lives in sam_med2d/evaluation/metrics.py.
"""

from sam_med2d.evaluation.metrics import METRICS, binarise, dice, iou

__all__ = ["METRICS", "binarise", "dice", "iou"]
