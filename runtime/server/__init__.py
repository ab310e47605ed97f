"""The gRPC server: protocols in, engine calls out."""

from tersor.runtime.server.app import serve
from tersor.runtime.server.errors import AddressError
from tersor.runtime.server.server import Server

__all__ = ["AddressError", "Server", "serve"]
