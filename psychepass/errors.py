"""The exceptions that mean «the user can mend this»: the CLI prints them in a line."""


class UserError(Exception):
    """Names what is wrong, where, the value found and what is permitted. The CLI exits with 2."""


class Unreachable(UserError):
    """Nobody answers at an endpoint's address."""


class Unfinished(UserError):
    """Work is left because an endpoint did not answer: the same call, made later, goes on. The CLI exits with 75."""
