"""Errors of programs, of the weights they ask for, and of what they are fed.

ModelError
├── UnsupportedProgramError  a program this build cannot run (unknown operator, schema, family)
├── WeightError              a weight the program needs is missing, unknown or mis-shaped
├── TokenizerError           a tokenizer that cannot be read, or fails on a text or on ids
├── InvalidInputError        an input tensor is missing, unknown, or of the wrong dtype or shape
├── ProgramFailedError       the program failed while it ran on valid inputs
└── RunAbandonedError        nobody waits for the run's outputs any more
"""


class ModelError(Exception):
    """Root of the model errors."""


class UnsupportedProgramError(ModelError):
    """This build cannot run the program."""


class WeightError(ModelError):
    """A weight the program needs is missing, unknown or mis-shaped."""


class TokenizerError(ModelError):
    """The tokenizer cannot be read, or fails on a text or on ids."""


class InvalidInputError(ModelError):
    """An input of a graph is missing, unknown, or of the wrong dtype or shape."""


class ProgramFailedError(ModelError):
    """The program failed while it ran on inputs of the declared kind."""


class RunAbandonedError(ModelError):
    """The run of a graph ended early, because nobody waits for its outputs any more."""
