"""What a person can mend. Every message is one line that says what is wrong, where, and what to do."""


class UserError(ValueError):
    """The mistake of a person, not of the program: a file, a flag or a prompt that cannot be used."""

    def __init__(self, message: object) -> None:
        """message: made one line, whatever it quotes."""
        super().__init__(" ".join(str(message).splitlines()))


class CheckpointError(UserError):
    """A weight file that cannot be used. The line names the file."""


class PromptError(UserError):
    """A prompt that cannot be used."""


class ImageError(UserError):
    """An array that cannot be used as an image."""
