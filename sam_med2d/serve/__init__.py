"""A server that speaks the protocols of tools that people annotate with: `sam-med2d serve`."""
