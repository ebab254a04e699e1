"""The model of the tests of both scripts, which `--model_type mini` names there."""

from segment_anything.sizes import Size

MINI = Size(channels=32, depth=4, heads=2, global_blocks=(1, 3), embedding=64)
