"""The one exception that means «the user can mend this»: the CLI prints it in a line and exits with 2."""


class UserError(Exception):
    """Names what is wrong, where, the value found and what is permitted."""
