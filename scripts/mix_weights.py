"""`sam-med2d mix-weights`, run from a clone."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sam_med2d.commands import run

if __name__ == "__main__":
    run("mix-weights")
