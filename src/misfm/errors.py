"""What misfm raises when the fault lies outside the program: one sentence each, saying what to do."""

from misfm.text import one_line


class MisfmError(Exception):
    """A failure a user can act on; the command line prints it as one line and exits with status 1."""

    def __str__(self) -> str:
        # Names and reasons in it come from files of others.
        return one_line(super().__str__())


class ConfigError(MisfmError):
    """A wrong option, recipe, name or setting; the command line exits with status 2."""


class DataError(MisfmError):
    """A scan, label map, dataset or store that cannot be used; names the file and the reason."""


class WeightsError(MisfmError):
    """A weights or checkpoint file that cannot be read or does not fit the network."""
