"""The boundary around reading a file of weights: what it makes a reader raise becomes one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from misfm.errors import MisfmError, WeightsError


@contextmanager
def reading(source: Path | str, fault: str, remedy: str) -> Iterator[None]:
    """Put what a file makes the code within raise into words; for libraries and readers of a format alone.

    Args:
        source: of the weights.
        fault: what is wrong with it if reading fails, a clause without its subject.
        remedy: what to do, a clause.

    Raises:
        WeightsError: whatever is raised within and is not a sentence already. Where memory ran out, that is
            what it says: there is nothing wrong with the file.
    """
    try:
        yield
    except MisfmError:
        raise
    except Exception as error:  # there is no end to what damaged bytes make a reader raise
        if lacks_memory(error):
            raise WeightsError(
                f"There is not enough memory to read {source}: free some, or use a larger machine."
            ) from error
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{source} {fault} ({reason or type(error).__name__}); {remedy}.") from error


def lacks_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out; torch has no type for that on a CPU."""
    text = str(error)
    return isinstance(error, MemoryError) or "can't allocate memory" in text or "out of memory" in text
