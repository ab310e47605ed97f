"""One thing that is wrong with a bundle, as verification and repair list it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """One thing that is wrong, and what depends on it."""

    # "chunk", "table", "plane", "asset", "padding", "digest" or "parity"; where a repair is refused
    # also "header" and "manifest"
    kind: str
    message: str
    tensors: tuple[str, ...] = ()  # all tensors that use the damaged plane
    groups: tuple[str, ...] = ()  # that these tensors are in: layers, for a decoder
    plane: str | None = None
    stream: str | None = None
    chunk: int | None = None
    asset: str | None = None
    offset: int | None = None  # in the file
    stored_bytes: int | None = None

    def described(self) -> str:
        """The message, with the tensors and groups that depend on it."""
        if not self.tensors:
            return self.message
        tensors = "tensor" if len(self.tensors) == 1 else "tensors"
        groups = "group" if len(self.groups) == 1 else "groups"
        return (
            f"{self.message} ({tensors} {', '.join(self.tensors)}; {groups} "
            f"{', '.join(self.groups)})"
        )
