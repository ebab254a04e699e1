"""A script of the repository as a process that knows the mini model: with_mini.py train.py FLAGS..."""

import runpy
import signal
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]

if __name__ == "__main__":  # and not in the workers that it starts
    sys.path[0] = str(ROOT)
    from segment_anything import sam_model_registry
    from segment_anything.build_sam import build_sam
    from segment_anything.sizes import SIZES
    from tests.training.mini import MINI

    # What a shell starts in the background is deaf to Ctrl-C, and so are its children
    signal.signal(signal.SIGINT, signal.default_int_handler)
    SIZES["mini"] = MINI
    sam_model_registry["mini"] = partial(build_sam, model_type="mini")
    sys.argv = sys.argv[1:]
    runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
