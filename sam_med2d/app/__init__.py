"""The page: annotate in the browser."""
