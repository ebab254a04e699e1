"""Clicks, boxes, modes by name, and who draws them."""
