"""The exceptions that end a tool with one line: a problem the user can fix, and a run that was asked to stop."""


class UserError(Exception):
    """A problem whose cause is outside the code: a key, a file, an image, a value.

    The message is one line that names the thing and says what to do; tools print it without a traceback and exit with 2.
    """

    def __str__(self) -> str:
        # A DataLoader worker re-raises with its traceback written in front of the message; only the message is for people.
        return super().__str__().rsplit("UserError: ", 1)[-1].strip()


class Interrupted(Exception):
    """A signal asked the run to stop, and it has saved its state. The message is one line; see utils.process.cli.run."""
