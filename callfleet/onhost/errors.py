"""What can go wrong, by what the caller should do about it."""


class SlotError(Exception):
    """Something failed; the text says what, where and what to do. Exit code 1."""


class UsageError(SlotError):
    """The command line or stack.json is wrong; nothing was changed. Exit code 64."""


class Interrupted(SlotError):  # noqa: N818 - it is no error of anything
    """SIGTERM or SIGINT arrived; the current step was finished and nothing further begun. Exit code 1."""
