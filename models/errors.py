"""Errors of programs and of the weights they ask for.

ModelError
├── UnsupportedProgramError  a program this build cannot run (unknown operator, schema, family)
└── WeightError              a weight the program needs is missing, unknown or mis-shaped
"""


class ModelError(Exception):
    """Root of the model errors."""


class UnsupportedProgramError(ModelError):
    """This build cannot run the program."""


class WeightError(ModelError):
    """A weight the program needs is missing, unknown or mis-shaped."""
