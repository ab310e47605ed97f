"""What a model is, in the words of the Open Inference Protocol and of Triton's configuration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from tersor.bundle.program import DecoderProgram, GraphProgram, TensorSpec
from tersor.protos.inference import grpc_service_pb2 as pb
from tersor.runtime.server.contracts import ServedDecoder, ServedGraph
from tersor.runtime.server.datatypes import BY_WIRE, BYTES
from tersor.runtime.server.decoder_request import (
    OUTPUTS,
    TEXT_INPUT,
    input_datatypes,
    is_list_input,
)
from tersor.runtime.server.graph_request import TEXT_INPUT as GRAPH_TEXT_INPUT
from tersor.runtime.server.graph_request import takes_text, wire_datatype

SERVER_NAME: Final = "tersor"
# Triton's names of what works here; `statistics` and others do not, so they are not claimed.
EXTENSIONS: Final = ("model_configuration", "binary_tensor_data", "parameters")
DECODER_PLATFORM: Final = "tersor_decoder"
GRAPH_PLATFORM: Final = "tersor_graph"

Tensors = Iterable[tuple[str, str, Sequence[int]]]


def metadata(model: ServedDecoder | ServedGraph) -> pb.ModelMetadataResponse:
    """Inputs and outputs with complete shapes, and what is known of the bundle."""
    program = model.program
    decoder = isinstance(program, DecoderProgram)
    response = pb.ModelMetadataResponse(
        name=model.name,
        versions=[model.version],
        platform=DECODER_PLATFORM if decoder else GRAPH_PLATFORM,
        properties=_properties(model),
    )
    for name, datatype, shape in _inputs(program):
        response.inputs.add(name=name, datatype=datatype, shape=shape)
    for name, datatype, shape in _outputs(program):
        response.outputs.add(name=name, datatype=datatype, shape=shape)
    return response


def config(model: ServedDecoder | ServedGraph, batch_delay_seconds: float) -> pb.ModelConfig:
    """Triton's configuration: shapes without the batch where there is one."""
    program = model.program
    decoder = isinstance(program, DecoderProgram)
    batch = 0
    if isinstance(program, GraphProgram) and program.batch_dim_dynamic:
        batch = program.max_batch_size
    result = pb.ModelConfig(
        name=model.name,
        platform=DECODER_PLATFORM if decoder else GRAPH_PLATFORM,
        backend=SERVER_NAME,
        max_batch_size=batch,
        model_transaction_policy=pb.ModelTransactionPolicy(decoupled=decoder),
    )
    first = 1 if batch else 0
    required = _required(program)
    for name, datatype, shape in _inputs(program):
        result.input.add(
            name=name,
            data_type=_config_type(datatype),
            dims=shape[first:],
            optional=name not in required,
        )
    for name, datatype, shape in _outputs(program):
        result.output.add(name=name, data_type=_config_type(datatype), dims=shape[first:])
    if batch:
        result.dynamic_batching.max_queue_delay_microseconds = round(batch_delay_seconds * 1e6)
    for key, value in _properties(model).items():
        result.parameters[key].string_value = value
    return result


def _config_type(datatype: str) -> pb.DataType.ValueType:
    return pb.TYPE_STRING if datatype == BYTES else BY_WIRE[datatype].config


def _required(program: DecoderProgram | GraphProgram) -> frozenset[str]:
    if isinstance(program, DecoderProgram):
        return frozenset({TEXT_INPUT})
    return frozenset(() if takes_text(program) else (spec.name for spec in program.inputs))


def _inputs(program: DecoderProgram | GraphProgram) -> Tensors:
    if isinstance(program, DecoderProgram):
        for name, datatype in input_datatypes().items():
            yield name, datatype, (-1,) if is_list_input(name) else (1,)
        return
    yield from _specs(program.inputs)
    if takes_text(program):
        yield GRAPH_TEXT_INPUT, BYTES, (-1, 1) if program.batch_dim_dynamic else (1,)


def _outputs(program: DecoderProgram | GraphProgram) -> Tensors:
    if isinstance(program, DecoderProgram):
        for name, datatype in OUTPUTS.items():
            yield name, datatype, (1,)
        return
    yield from _specs(program.outputs)


def _specs(specs: Iterable[TensorSpec]) -> Tensors:
    for spec in specs:
        yield spec.name, wire_datatype(spec).wire, spec.shape


def _properties(model: ServedDecoder | ServedGraph) -> dict[str, str]:
    """The bundle's identity, size and measured quality."""
    manifest = model.manifest
    facts = {
        "digest": manifest.digest,
        "producer": manifest.producer,
        "recipe": str(manifest.recipe.get("name", "")),
        "bundle_bytes": str(model.reader.file_bytes),
    }
    for key, value in (manifest.certificate or {}).items():
        if isinstance(value, (int, float)):
            facts[f"certificate.{key}"] = str(value)
    return facts
