"""Errors of the layouts and operators."""


class LayoutError(ValueError):
    """A layout, its planes or an operand do not fit: the message says what, got and expected."""


class CorruptChunkError(ValueError):
    """An entropy-coded chunk is well formed, but its words do not decode."""


class TuningError(ValueError):
    """A tuning table is broken: the message names file, key, got, expected and what to do."""
