"""What a caller hands to the writer for one plane, and whether it is what it says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tersor.bundle.dtypes import SYMBOL_LIMITS, AnyArray, numpy_dtype
from tersor.bundle.errors import BundleCorruptError, BundleWriteError
from tersor.bundle.filters import check_symbols


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneData:
    """One plane to be written: its dtype name, and an array of `numpy_dtype(dtype)`."""

    dtype: str
    array: AnyArray


def contiguous(name: str, data: PlaneData) -> AnyArray:
    """The plane as a row-major little-endian array; copied only if it is not one already.

    Raises:
        BundleWriteError: the array has another dtype than the plane needs, or holds a symbol that
            the dtype does not.
        BundleFormatError: there is no such dtype.
    """
    expected = numpy_dtype(data.dtype)
    array = data.array
    if not isinstance(array, np.ndarray) or array.dtype.newbyteorder("<") != expected:
        got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise BundleWriteError(
            f"plane {name!r} of dtype {data.dtype} is an array of {got}; expected {expected}"
        )
    # Not `ascontiguousarray`, which gives a scalar a dimension.
    result = np.require(array, dtype=expected, requirements=["C"]).reshape(array.shape)
    limit = SYMBOL_LIMITS.get(data.dtype)
    if limit is not None:
        try:
            check_symbols(result.reshape(-1), limit)
        except BundleCorruptError as error:
            raise BundleWriteError(f"plane {name!r} of dtype {data.dtype}: {error}") from error
    return result
