"""From a JSON index to batches."""
