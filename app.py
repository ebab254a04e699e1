"""Segment in the browser: `python app.py`, the same as `sam-med2d app` (sam_med2d/app/start.py)."""

from sam_med2d.commands import run

if __name__ == "__main__":
    run("app")
