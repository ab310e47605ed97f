"""Reflection over messages that live in two descriptor pools (see protos/generate.py for why)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

from google.protobuf.descriptor_pool import DescriptorPool

File: TypeAlias = Any  # a FileDescriptor: the stubs of protobuf and of its users name other classes


def pool_of(files: Iterable[File]) -> DescriptorPool:
    """A pool with `files` and all that they import."""
    pool = DescriptorPool()
    added: set[str] = set()

    def add(file: File) -> None:
        if file.name in added:
            return
        added.add(file.name)
        for dependency in file.dependencies:
            add(dependency)
        pool.AddSerializedFile(file.serialized_pb)

    for file in files:
        add(file)
    return pool
