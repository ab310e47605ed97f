"""The forms in which `bundle_formats.py` stores the same tensors, each on one thread."""

from __future__ import annotations

import importlib
import importlib.util
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from real_weights import Tensors, add_tensors, new_writer, safetensors_views, to_torch
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from tersor.bundle.dtypes import AnyArray, ByteArray, numpy_dtype
from tersor.bundle.reader import BundleReader
from tersor.bundle.writer import PlaneData

Arrays = Mapping[str, AnyArray]
_ZIPNN_DTYPES = {"bf16": "bfloat16", "f32": "float32", "f16": "float16"}


class Form(ABC):
    """A file format for tensors."""

    name: str
    verified: bool = False  # loading notices a flipped bit

    @abstractmethod
    def encode(self, tensors: Tensors, path: Path) -> float:
        """Writes a file; returns the processor seconds that encoding took."""

    @abstractmethod
    def fetch(self, path: Path) -> Callable[[], Arrays]:
        """Reads the stored bytes into memory; what it returns decodes them."""

    def load(self, path: Path) -> Arrays:
        """From the file to arrays, verified where the form can."""
        return self.fetch(path)()


class Safetensors(Form):
    """The file as it is: one read into memory, and views. Nothing to encode or decode."""

    name = "safetensors"

    def encode(self, tensors: Tensors, path: Path) -> float:
        save_file({name: to_torch(data) for name, data in tensors.items()}, path)
        return 0.0

    def fetch(self, path: Path) -> Callable[[], Arrays]:
        data = _read(path)
        return lambda: _plain(safetensors_views(data))


class SafetensorsLoader(Safetensors):
    """The library's loader, which maps the file; and a copy, which alone brings it into memory."""

    name = "safetensors, load_file and clone"

    def load(self, path: Path) -> Arrays:
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        return {
            name: (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
            for name, tensor in tensors.items()
        }


class ZstdSafetensors(Form):
    """The whole safetensors file as one zstd frame with a checksum."""

    verified = True

    def __init__(self, level: int) -> None:
        self.name = f"safetensors + zstd -{level}"
        self._level = level

    def encode(self, tensors: Tensors, path: Path) -> float:
        save_file({name: to_torch(data) for name, data in tensors.items()}, path)
        data = path.read_bytes()
        start = time.process_time()
        compressor = zstandard.ZstdCompressor(level=self._level, write_checksum=True)
        packed = compressor.compress(data)
        elapsed = time.process_time() - start
        path.write_bytes(packed)
        return elapsed

    def fetch(self, path: Path) -> Callable[[], Arrays]:
        packed = _read(path)

        def decode() -> Arrays:
            data = zstandard.ZstdDecompressor().decompress(packed.data)
            return _plain(safetensors_views(np.frombuffer(data, np.uint8)))

        return decode


class Blobs(Form):
    """A tensor compressor's outputs as the uint8 tensors of a safetensors file, as ZipNN has them.

    A tensor that it does not shrink is stored as it is.
    """

    def prepare(self, data: PlaneData) -> Any:
        """What `pack` reads; not timed."""
        return data.array

    @abstractmethod
    def pack(self, prepared: Any, data: PlaneData) -> bytes | None:
        """The compressed tensor; None where the compressor does not know the dtype."""

    @abstractmethod
    def unpack(self, blob: ByteArray, dtype: str) -> ByteArray:
        """The tensor's bytes."""

    def encode(self, tensors: Tensors, path: Path) -> float:
        elapsed = 0.0
        blobs = {}
        kinds = {}
        for name, data in tensors.items():
            prepared = self.prepare(data)
            start = time.process_time()
            blob = self.pack(prepared, data)
            elapsed += time.process_time() - start
            if blob is None or len(blob) >= data.array.nbytes:
                blob = None
            blobs[name] = np.frombuffer(data.array.tobytes() if blob is None else blob, np.uint8)
            kinds[name] = [data.dtype, data.array.shape, blob is not None]
        save_arrays(blobs, path, metadata={"kinds": json.dumps(kinds)})
        return elapsed

    def fetch(self, path: Path) -> Callable[[], Arrays]:
        data = _read(path)
        start = 8 + int(data[:8].view("<u8")[0])
        kinds = json.loads(json.loads(data[8:start].tobytes())["__metadata__"]["kinds"])
        blobs = _plain(safetensors_views(data))

        def decode() -> Arrays:
            arrays = {}
            for name, (dtype, shape, packed) in kinds.items():
                raw = self.unpack(blobs[name], dtype) if packed else blobs[name]
                arrays[name] = raw.view(numpy_dtype(dtype)).reshape(shape)
            return arrays

        return decode


class ZipNN(Blobs):
    """ZipNN: exponents apart, Huffman or zstd, whichever it finds smaller; tensor by tensor."""

    name = "zipnn"

    def __init__(self) -> None:
        zipnn = importlib.import_module("zipnn")
        self._coders = {
            dtype: zipnn.ZipNN(method="AUTO", input_format="byte", bytearray_dtype=name, threads=1)
            for dtype, name in _ZIPNN_DTYPES.items()
        }

    def prepare(self, data: PlaneData) -> Any:
        # It turns the bits of its input where they lie: the input must be its own.
        return bytearray(data.array.tobytes())

    def pack(self, prepared: Any, data: PlaneData) -> bytes | None:
        coder = self._coders.get(data.dtype)
        return None if coder is None else coder.compress(prepared)

    def unpack(self, blob: ByteArray, dtype: str) -> ByteArray:
        return np.frombuffer(self._coders[dtype].decompress(blob.data), np.uint8)


class Blosc2(Blobs):
    """Blosc2: zstd at its usual level behind a shuffle of bytes or bits; tensor by tensor."""

    _LEVEL = 1

    def __init__(self, shuffle: str) -> None:
        self.name = f"blosc2 {shuffle} + zstd"
        self._shuffle = shuffle.upper()
        self._blosc2 = importlib.import_module("blosc2")

    def pack(self, prepared: Any, data: PlaneData) -> bytes | None:
        blosc2 = self._blosc2
        how = blosc2.CParams(
            codec=blosc2.Codec.ZSTD,
            clevel=self._LEVEL,
            typesize=data.array.itemsize,
            nthreads=1,
            filters=[blosc2.Filter[self._shuffle]],
            filters_meta=[0],
        )
        packed: bytes = blosc2.compress2(prepared, cparams=how)
        return packed

    def unpack(self, blob: ByteArray, dtype: str) -> ByteArray:
        del dtype
        how = self._blosc2.DParams(nthreads=1)
        return np.frombuffer(self._blosc2.decompress2(blob, dparams=how), np.uint8)


class Tersor(Form):
    """A bundle. Encoding includes its digests, its choices and the write into the page cache."""

    verified = True

    def __init__(self, codec: str) -> None:
        self.name = f"tersor {codec}"
        self._codec = codec

    def encode(self, tensors: Tensors, path: Path) -> float:
        with new_writer(path, self._codec) as writer:
            start = time.process_time()
            add_tensors(writer, tensors)
            elapsed = time.process_time() - start
            writer.commit()  # waits for the disk, which the others do not
        return elapsed

    def fetch(self, path: Path) -> Callable[[], Arrays]:
        with BundleReader.open(path, threads=1) as reader:
            planes = {
                tensor.name: reader.fetch_plane(tensor.planes[0])
                for tensor in reader.manifest.tensors
            }
        return lambda: {name: plane.decode() for name, plane in planes.items()}

    def load(self, path: Path) -> Arrays:
        with BundleReader.open(path, threads=1) as reader:
            return {
                tensor.name: reader.read_plane(tensor.planes[0])
                for tensor in reader.manifest.tensors
            }


def all_forms() -> tuple[list[Form], dict[str, str]]:
    """The forms that can run here, and why the others cannot."""
    optional: dict[str, list[Callable[[], Form]]] = {
        "zipnn": [ZipNN],
        "blosc2": [lambda: Blosc2("shuffle"), lambda: Blosc2("bitshuffle")],
    }
    forms: list[Form] = [
        Safetensors(), SafetensorsLoader(), ZstdSafetensors(1), ZstdSafetensors(3),
    ]  # fmt: skip
    skipped = {}
    for package, makers in optional.items():
        if importlib.util.find_spec(package) is None:
            skipped[package] = f"skipped: {package} is not installed (pip install 'tersor[bench]')"
        else:
            forms += [maker() for maker in makers]
    forms += [Tersor(codec) for codec in ("auto", "rans", "huffman", "zstd")]
    return forms, skipped


def check(form: Form, got: Arrays, tensors: Tensors) -> None:
    """Raises SystemExit unless a form gave every byte back."""
    for name, data in tensors.items():
        array = got[name]
        same = array.shape == data.array.shape and array.dtype == data.array.dtype
        if not same or not np.array_equal(_bytes(array), _bytes(data.array)):
            raise SystemExit(f"{form.name} does not give the tensor {name!r} back")


def _read(path: Path) -> ByteArray:
    """A whole file, in one read into new memory."""
    data = np.empty(path.stat().st_size, np.uint8)
    with path.open("rb", buffering=0) as file:
        done = 0
        while done < data.size:
            done += file.readinto(data.data[done:])
    return data


def _plain(tensors: Tensors) -> Arrays:
    return {name: data.array for name, data in tensors.items()}


def _bytes(array: AnyArray) -> ByteArray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
