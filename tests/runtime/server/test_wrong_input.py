"""What strangers send to real models: every wrong request gets its status and one clear message."""

from __future__ import annotations

import math
import shutil
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc import StatusCode
from oip import infer_request, pack_bytes, set_parameter, text_output
from running_server import RunningServer, free_ports, running_server

from tersor.protos.inference import grpc_service_pb2 as pb
from tersor.protos.tersor.v1 import generation_pb2 as generation

Tensor = tuple[str, str, Sequence[int], bytes]
Sampling = dict[str, bool | str | float]

TEXT = pack_bytes([b"x = "])
PROMPT: Tensor = ("text_input", "BYTES", [1], TEXT)
WRONG = StatusCode.INVALID_ARGUMENT


@dataclass(frozen=True, kw_only=True)
class Case:
    """A raw request, and what it must be answered with."""

    tensors: Sequence[Tensor] = (PROMPT,)
    model: str = "pico"
    version: str = ""
    raw: Sequence[bytes] | None = None  # in place of the tensors' own
    outputs: Sequence[str] = ()
    sampling: Sampling = field(default_factory=dict)
    code: StatusCode = WRONG
    says: str = ""

    def request(self) -> pb.ModelInferRequest:
        request = pb.ModelInferRequest(model_name=self.model, model_version=self.version)
        for name, datatype, shape, _ in self.tensors:
            request.inputs.add(name=name, datatype=datatype, shape=shape)
        contents = [raw for *_, raw in self.tensors] if self.raw is None else self.raw
        request.raw_input_contents.extend(contents)
        for name in self.outputs:
            request.outputs.add(name=name)
        for name, value in self.sampling.items():
            set_parameter(request.parameters[name], value)
        return request


def prompt(shape: Sequence[int], raw: bytes, *, datatype: str = "BYTES") -> list[Tensor]:
    return [("text_input", datatype, shape, raw)]


def ids(shape: Sequence[int], value: int = 5, **changed: Sequence[int]) -> list[Tensor]:
    """MiniLM's inputs of one shape, except those named in `changed`."""
    result: list[Tensor] = []
    names = {"input_ids": value, "attention_mask": 1, "token_type_ids": 0}
    for name, fill in names.items():
        size = changed.get(name, shape)
        raw = np.full([abs(n) for n in size], fill, np.int64).tobytes()
        result.append((name, "INT64", size, raw))
    return result


def settings(json: bytes) -> list[Tensor]:
    return [PROMPT, ("sampling_parameters", "BYTES", [1], pack_bytes([json]))]


def graph(tensors: Sequence[Tensor], says: str) -> Case:
    return Case(model="minilm", tensors=tensors, says=says)


CASES = {
    "no model": Case(model="", code=StatusCode.NOT_FOUND, says="there is no model ''"),
    "unknown model": Case(model="gpt", code=StatusCode.NOT_FOUND, says="minilm, pico"),
    "unknown version": Case(version="2", code=StatusCode.NOT_FOUND, says="it has version 1"),
    "no inputs": Case(tensors=(), says="'text_input' is missing"),
    "wrong name": Case(tensors=[("prompt", "BYTES", [1], TEXT)], says="expected one of text_input"),
    "twice": Case(tensors=(PROMPT, PROMPT), says="given twice"),
    "wrong dtype": Case(tensors=prompt([1], bytes(4), datatype="INT32"), says="expected BYTES"),
    "no such dtype": Case(
        tensors=prompt([1], TEXT, datatype="STRING"), says="expected one of BOOL"
    ),
    "two prompts": Case(tensors=prompt([2], TEXT * 2), says="has shape [2], expected one element"),
    "no element": Case(tensors=prompt([0], b""), says="has shape [0], expected one element"),
    "negative shape": Case(tensors=prompt([-1], TEXT), says="dimensions are 0 or more"),
    "huge shape": Case(tensors=prompt([1 << 62, 4], TEXT), says="do not split"),
    "short": Case(tensors=prompt([1], TEXT[:-1]), says="7 bytes of raw contents"),
    "long": Case(tensors=prompt([1], TEXT + b"x"), says="9 bytes of raw contents"),
    "lying length": Case(tensors=prompt([1], b"\xff\xff\xff\xffx"), says="4-byte little-endian"),
    "nothing raw": Case(raw=[], says="0 elements in `contents`"),
    "too many raw": Case(raw=[TEXT, TEXT], says="2 entries, expected one for each"),
    "not UTF-8": Case(tensors=prompt([1], pack_bytes([b"\xff"])), says="not UTF-8"),
    "beyond the context": Case(
        tensors=prompt([1], pack_bytes([b"x " * 9000])), says="context of 2048 tokens"
    ),
    "megabytes": Case(tensors=prompt([1], pack_bytes([b"x " * 5_000_000])), says="no context of"),
    "unknown output": Case(outputs=["logits"], says="'logits' is unknown"),
    "unknown parameter": Case(sampling={"temprature": 1.0}, says="'temprature' is unknown"),
    "no tokens": Case(sampling={"max_tokens": 0}, says="max_tokens is 0"),
    "half a token": Case(sampling={"max_tokens": 1.5}, says="expected an integer"),
    "a word": Case(sampling={"max_tokens": "many"}, says="'many', expected a finite number"),
    "NaN": Case(sampling={"temperature": math.nan}, says="expected a finite number"),
    "infinity": Case(sampling={"top_p": math.inf}, says="expected a finite number"),
    "NaN as a tensor": Case(
        tensors=[PROMPT, ("min_p", "FP32", [1], struct.pack("<f", math.nan))], says="finite number"
    ),
    "JSON cut short": Case(tensors=settings(b"{"), says="sampling_parameters is not JSON"),
    "JSON list": Case(tensors=settings(b"[]"), says="JSON list, expected an object"),
    "deep JSON": Case(tensors=settings(b"[" * 100_000), says="is not JSON"),
    "many stops": Case(tensors=settings(b'{"stop": [%s"a"]}' % (b'"a",' * 99)), says="at most 64"),
    "token out of range": Case(tensors=settings(b'{"stop_token_ids": [4096]}'), says="0 to 4095"),
    "negative timeout": Case(sampling={"timeout": -1}, says="microseconds"),
    "state": Case(sampling={"sequence_id": 1}, code=StatusCode.UNIMPLEMENTED, says="leave it out"),
    "graph: no input": graph((), "is missing"),
    "graph: one missing": graph(ids([1, 4])[:2], "'token_type_ids' is missing"),
    "graph: unknown": graph([PROMPT], "'text_input' is unknown, expected input_ids"),
    "graph: no rows": graph(ids([0, 4]), "0 rows, expected 1 to 256"),
    "graph: no tokens": graph(ids([1, 0]), "any size from 1"),
    "graph: too long": graph(ids([1, 513]), "513, expected 1 to 512"),
    "graph: too many rows": graph(ids([257, 1]), "257 rows"),
    "graph: negative": graph(ids([-1, -4]), "dimensions are 0 or more"),
    "graph: rank": graph(ids([4]), "has shape [4], expected [-1, -1]"),
    "graph: lengths": graph(ids([1, 4], attention_mask=[1, 5]), "differ in shape"),
    "graph: batches": graph(ids([2, 4], attention_mask=[1, 4]), "differ in their first dimension"),
    "graph: token beyond": graph(ids([1, 4], 1 << 40), "outside a table of 30522 rows"),
    "graph: negative token": graph(ids([1, 4], -1), "outside a table of 30522 rows"),
    "graph: text beside": graph([*ids([1, 4]), ("text", "BYTES", [1], TEXT)], "stands alone"),
    "graph: text not UTF-8": graph([("text", "BYTES", [1], pack_bytes([b"\xff"]))], "not UTF-8"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_unary(real: RunningServer, case: Case) -> None:
    with pytest.raises(grpc.RpcError) as error:
        real.inference.ModelInfer(case.request(), timeout=60)
    assert error.value.code() == case.code
    message = error.value.details() or ""
    assert case.says in message
    assert "Traceback" not in message
    assert "Internal" not in message


def test_on_a_stream_none_disturbs_the_others(real: RunningServer) -> None:
    """All of them and two good ones, interleaved on one stream."""
    good = [
        infer_request("pico", {"text_input": "x = "}, max_tokens=4, request_id="good") for _ in "ab"
    ]
    wrong = [case.request() for case in CASES.values()]
    for number, request in enumerate(wrong):
        request.id = str(number)
    answers = list(real.inference.ModelStreamInfer(iter([good[0], *wrong, good[1]]), timeout=60))
    messages = {a.infer_response.id: a.error_message for a in answers}
    assert messages.pop("good") == ""
    for number, case in enumerate(CASES.values()):
        assert case.says in messages[str(number)]
    assert [a.error_message for a in answers if a.infer_response.id == "good"] == ["", ""]


GENERATIONS: dict[str, tuple[Callable[[], generation.GenerateRequest], StatusCode, str]] = {
    "no model": (generation.GenerateRequest, StatusCode.NOT_FOUND, "there is no model ''"),
    "no prompt": (lambda: generation.GenerateRequest(model="pico"), WRONG, "has no prompt"),
    "no token": (
        lambda: generation.GenerateRequest(model="pico", token_ids=generation.TokenIds()),
        WRONG, "the prompt is empty",
    ),
    "token beyond": (
        lambda: generation.GenerateRequest(model="pico", token_ids=generation.TokenIds(ids=[4096])),
        WRONG, "allowed is 0 to 4095",
    ),
    "NaN": (
        lambda: generation.GenerateRequest(
            model="pico", text="x", sampling=generation.SamplingParams(temperature=math.nan)
        ),
        WRONG, "temperature is nan",
    ),
    "a graph": (
        lambda: generation.GenerateRequest(model="minilm", text="x"),
        StatusCode.UNIMPLEMENTED, "generates no text",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "code", "says"), GENERATIONS.values(), ids=GENERATIONS.keys())
def test_generation(
    real: RunningServer, make: Callable[[], generation.GenerateRequest], code: StatusCode, says: str
) -> None:
    with pytest.raises(grpc.RpcError) as error:
        list(real.generation.Generate(make(), timeout=60))
    assert error.value.code() == code
    assert says in (error.value.details() or "")


def test_the_server_answers_as_before(real: RunningServer) -> None:
    """After all of the above."""
    answer = real.inference.ModelInfer(infer_request("pico", {"text_input": "x = "}, max_tokens=4))
    assert text_output(answer).startswith("x = ")
    request = infer_request("minilm", {"text": ["a cat"]}, outputs=["sentence_embedding"])
    assert list(real.inference.ModelInfer(request).outputs[0].shape) == [1, 384]
    assert real.sample("tersor_kv_pages_used", model="pico") == 0


def test_a_bundle_altered_while_it_is_served(bundles: Path, tmp_path: Path) -> None:
    """Its requests fail clearly, the other model's do not, and the restored file serves again."""
    whole = (bundles / "pico.tersor").read_bytes()
    for name in ("altered", "cut", "deleted", "fine"):
        shutil.copy(bundles / "pico.tersor", tmp_path / f"{name}.tersor")
    altered, cut = tmp_path / "altered.tersor", tmp_path / "cut.tersor"

    def ask(model: str) -> str:
        request = infer_request(model, {"text_input": "x = "}, max_tokens=4)
        return text_output(running.inference.ModelInfer(request, timeout=60))

    with running_server(free_ports(models=(tmp_path,))) as running:
        middle = len(whole) // 2
        with altered.open("r+b") as file:
            file.seek(middle)
            file.write(bytes(byte ^ 1 for byte in whole[middle : middle + 50_000]))
        with cut.open("r+b") as file:
            file.truncate(middle)
        (tmp_path / "deleted.tersor").unlink()
        for _ in range(2):
            for model, says in (("altered", "is damaged"), ("cut", "truncated while open")):
                with pytest.raises(grpc.RpcError, match=says) as error:
                    ask(model)
                assert error.value.code() == StatusCode.UNAVAILABLE
                assert f"model {model}: group layers." in (error.value.details() or "")
        assert ask("deleted") == ask("fine")  # what is open stays readable
        with altered.open("r+b") as file:
            file.write(whole)
        assert ask("altered") == ask("fine")
