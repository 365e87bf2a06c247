"""CRC-32C, which two formats keep: by awscrt where it is installed, else by google-crc32c.

awscrt is two to four times as fast and lets go of the interpreter lock; it takes 0.06 s to import,
so that only who meets such a checksum imports it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import cast

import numpy as np

from saturation.errors import SaturationError


def crc32c(data: bytes | np.ndarray, so_far: int = 0) -> int:
    """Return the CRC-32C of some bytes, or of those behind others whose checksum is `so_far`.

    Args:
      data: bytes, or an array of them (uint8, contiguous).
      so_far: the checksum of what lies before.

    Raises:
      SaturationError: neither library is installed.
    """
    return _function()(data, so_far)


@cache
def _function() -> Callable[[bytes | np.ndarray, int], int]:
    try:
        from awscrt.checksums import crc32c as of_awscrt

        # Annotated as bytes, it takes any buffer.
        return lambda data, so_far: of_awscrt(cast(bytes, data), so_far)
    except ImportError:
        pass
    try:
        import google_crc32c

        return lambda data, so_far: google_crc32c.extend(so_far, cast(bytes, data))
    except ImportError as error:
        raise SaturationError(
            "A checksum of this checkpoint cannot be verified: install awscrt or google-crc32c "
            "(pip install awscrt)."
        ) from error
