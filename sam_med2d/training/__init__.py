"""What a batch does, what it learns from, and what a checkpoint holds."""
