"""The one error type for input that cannot be used, and the one for a run that was told to stop."""


class InputError(ValueError):
    """Input that cannot be used, told so that the reader can act.

    where: the file, folder or config field; found and expected: what is there and what was wanted;
    remedy: what to do next, as an imperative.
    """

    def __init__(self, where, *, found, expected, remedy):
        self.where, self.found, self.expected, self.remedy = str(where), found, expected, remedy
        text = f"{where}: found {found}; expected {expected}. {remedy}"
        # File names need not be UTF-8, and printing what stands for their bytes would raise.
        super().__init__(text.encode(errors="backslashreplace").decode())


class Interrupted(Exception):
    """A training that was asked to stop (SIGTERM) and has saved where it stands."""
