"""Errors that a person can act on.

Each message is one line: what is wrong, where, and what to do. `cli.main` prints it without a traceback and exits
with the class's code; any other exception is a defect of ours and keeps its traceback.
"""


class MlxEmailError(Exception):
    """Something went wrong that is not the user's doing (a full disk, a damaged file): exit code 1."""

    exit_code = 1


class UserError(MlxEmailError, ValueError):
    """What the user gave cannot be used (a path, a setting, a model): exit code 2."""

    exit_code = 2


class DataError(UserError):
    """The mail, or a table made from it, cannot be used."""


class NothingToLearnError(DataError):
    """The mail has nothing that a stage could learn from; others may find something in it."""


class ConfigError(UserError):
    """A configuration file or a --set that does not fit the configuration."""


class ModelError(UserError):
    """A model, tokenizer or adapter that is missing, damaged or not one of ours."""
