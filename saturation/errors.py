"""The errors this package raises on purpose.

Each text is one clear sentence or two: what was expected, what was found, where, and what to do.
The command line prints it alone and exits with 1; anything else that escapes is a bug of ours.
"""


class SaturationError(Exception):
    """An input, a file or a request that cannot be used, with a text meant for the user."""


class CheckpointFormatError(SaturationError):
    """A checkpoint that is damaged, incomplete, hostile, or of no format that is read here."""


class UnreadTypeError(CheckpointFormatError):
    """An array whose elements have a type that is not read here; `reason` says which."""

    def __init__(self, where: str, reason: str):
        super().__init__(f"{where}: {reason}.")
        self.reason = reason


class TrajectoryError(SaturationError):
    """A place that holds no usable sequence of checkpoints, or not the steps asked for."""


class ResultsError(SaturationError):
    """A run folder that is missing, incomplete, of another trajectory, or cannot be written."""


class ConfigError(SaturationError):
    """A configuration file or setting that does not say what it must."""


class MeasureError(SaturationError):
    """A measure that is unknown, or that cannot be taken on this trajectory."""


class ArgumentError(SaturationError, ValueError):
    """An argument of a model or of a function of arrays that cannot be used."""


class Stopped(SaturationError):
    """A signal stopped the work; what was finished is written, and the same command goes on."""


class LimitError(SaturationError):
    """A function whose parameter limit does not exist, or cannot be carried in powers of c."""


class FormerVersionWarning(UserWarning):
    """Part of a run was written by another version of a measure and is left out."""


def escaped(text: str) -> str:
    """Return a text with what a terminal would obey, and lone surrogates, written out.

    >>> escaped("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or one == "\n" else one.encode("unicode_escape").decode()
        for one in text
    )
