"""Everything that can go wrong on the offline journey, in one tree.

ConvertError
├── SourceError                 the source is not a complete, consistent model
│   └── UnsupportedSourceError  a valid model of a kind this build cannot convert
├── RecipeError                 a recipe is unknown, malformed, or does not fit the model
├── DestinationError            the output cannot be written, or exists and `force` is not set
├── EvaluationError             a bundle cannot be evaluated on this text or against this reference
└── RoundTripError              a codec does not give back the bytes that it was given
"""


class ConvertError(Exception):
    """Root of the converter errors: the message says what, got, expected and what to do."""


class SourceError(ConvertError):
    """The source is not a complete, consistent model."""


class UnsupportedSourceError(SourceError):
    """A valid model of a kind this build cannot convert."""


class RecipeError(ConvertError):
    """A recipe is unknown, malformed, or does not fit the model."""


class DestinationError(ConvertError):
    """The output cannot be written, or exists already."""


class EvaluationError(ConvertError):
    """A bundle cannot be evaluated on this text or against this reference."""


class RoundTripError(ConvertError):
    """A codec does not give back the bytes that it was given."""
