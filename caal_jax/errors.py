"""The one error type for input that cannot be used."""


class InputError(ValueError):
    """Input that cannot be used, told so that the reader can act.

    where: the file, folder or config field; found and expected: what is there and what was wanted;
    remedy: what to do next, as an imperative.
    """

    def __init__(self, where, *, found, expected, remedy):
        self.where, self.found, self.expected, self.remedy = str(where), found, expected, remedy
        super().__init__(f"{where}: found {found}; expected {expected}. {remedy}")
