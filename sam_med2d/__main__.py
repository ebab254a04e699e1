"""`python -m sam_med2d NAME ...`, the same as `sam-med2d NAME ...`."""

from sam_med2d.commands import main

if __name__ == "__main__":
    main()
