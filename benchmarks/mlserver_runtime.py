"""The model class that MLServer loads for `server_overhead.py`: a bundle's graph alone."""

from __future__ import annotations

import torch
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from tersor.bundle.program import GraphProgram
from tersor.bundle.reader import BundleReader
from tersor.models.graph import GraphModel
from tersor.models.weights import ResidentWeights


class GraphRuntime(MLModel):  # type: ignore[misc]  # mlserver is not installed here
    """Runs in MLServer's own process, on its event loop: the shortest way it has."""

    async def load(self) -> bool:
        torch.set_num_threads(1)
        parameters = self.settings.parameters
        assert parameters is not None
        assert parameters.uri is not None
        device = torch.device("cpu")
        with BundleReader.open(parameters.uri) as reader:
            program = reader.manifest.program
            assert isinstance(program, GraphProgram)
            weights = ResidentWeights.from_bundle(reader, device)
            graph = reader.read_asset(program.graph_asset)
            self._model = GraphModel(program, graph, weights, device=device)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        inputs = {i.name: torch.from_numpy(NumpyCodec.decode_input(i)) for i in payload.inputs}
        outputs = self._model.run(inputs)
        names = [output.name for output in payload.outputs or ()] or list(outputs)
        encoded = [NumpyCodec.encode_output(name, outputs[name].numpy()) for name in names]
        return InferenceResponse(model_name=self.name, outputs=encoded)
