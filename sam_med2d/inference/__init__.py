"""Open a model or an exported file, and annotate with it."""
