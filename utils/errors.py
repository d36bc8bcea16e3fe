"""The exceptions that end a tool with one line: a problem the user can fix, and a run that was asked to stop."""

from utils.limits import MESSAGE


class UserError(Exception):
    """A problem whose cause is outside the code: a key, a file, an image, a value.

    The message is one line that names the thing and says what to do; tools print it without a traceback and exit with 2.
    """

    def __str__(self) -> str:
        # A DataLoader worker re-raises with its traceback written in front of the message; only the message is for people.
        text = super().__str__().rsplit("UserError: ", 1)[-1].strip()
        return shorten(printable(shorten(text)))  # a character that cannot be shown becomes several


class Interrupted(Exception):
    """A signal asked the run to stop, and it has saved its state. The message is one line; see utils.process.cli.run."""


def shorten(text: str) -> str:
    """Of a text that is longer than a screen its begin and end: the thing, and what is wrong with it."""
    return text if len(text) <= MESSAGE else f"{text[: MESSAGE // 2]} … {text[-MESSAGE // 2 :]}"


def printable(text: str) -> str:
    """The text on one line of a terminal or a table, whatever characters it holds."""
    return text if text.isprintable() else "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
