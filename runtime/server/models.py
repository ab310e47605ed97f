"""Tells the two kinds of served model apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tersor.bundle.program import DecoderProgram
from tersor.runtime.errors import ShuttingDownError, UnsupportedError
from tersor.runtime.server.contracts import Host, ServedDecoder, ServedGraph

if TYPE_CHECKING:
    from typing_extensions import TypeIs


def is_decoder(model: ServedDecoder | ServedGraph) -> TypeIs[ServedDecoder]:
    """Whether `model` generates text."""
    return isinstance(model.program, DecoderProgram)


class Models:
    """The host once it stands; until then every question answers "starting"."""

    def __init__(self) -> None:
        self._host: Host | None = None

    def attach(self, host: Host) -> None:
        """Serves the models of `host` from now on."""
        self._host = host

    @property
    def ready(self) -> bool:
        """Whether every model takes requests."""
        return self._host is not None and all(m.ready for m in self._host.models.values())

    def get(self, name: str, version: str) -> ServedDecoder | ServedGraph:
        """The model called `name`.

        Raises:
            UnknownModelError: there is none, or not in that version.
            ShuttingDownError: the models are not open yet.
        """
        if self._host is None:
            raise ShuttingDownError("The server is starting: its models are not open yet.")
        return self._host.get(name, version)

    def decoder(self, name: str) -> ServedDecoder:
        """The decoder called `name`. Raises UnsupportedError, too, if it is a graph."""
        model = self.get(name, "")
        if is_decoder(model):
            return model
        raise UnsupportedError(
            f"Model {name!r} is a graph and generates no text: use inference.GRPCInferenceService."
        )
