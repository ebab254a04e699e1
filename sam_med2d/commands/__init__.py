"""What `sam-med2d NAME` and `scripts/NAME.py` run."""
