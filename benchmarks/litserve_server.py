"""A LitServe server of one candidate of a bundle, as its documentation writes one: the peer of serving_peers.py.

python benchmarks/litserve_server.py BUNDLE CANDIDATE MOST_IMAGES_A_BATCH SECONDS_TO_FILL_IT PORT
"""

from __future__ import annotations

import base64
import sys
from typing import Any

import litserve
import torch

import anyvit
from anyvit.data.decode import decode
from anyvit.deploy.prediction import top_of


class Classifier(litserve.LitAPI):
    """From the bytes of an image to its label. It is sent to a worker, so what it needs is text."""

    def __init__(self, bundle: str, candidate: str, most: int, wait: float) -> None:
        super().__init__(max_batch_size=most, batch_timeout=wait, api_path="/v1/predict")
        self.bundle, self.candidate = bundle, candidate

    def setup(self, device: str) -> None:
        torch.set_num_threads(1)
        opened = anyvit.load(self.bundle).bundle
        self.preprocessing, self.classes = opened.preprocessing, opened.classes
        self.runner = opened.runner(opened.result(self.candidate))

    def decode_request(self, request):  # without types, as LitServe reads them
        return self.preprocessing(decode(base64.b64decode(request["image"])))

    def batch(self, inputs: list[Any]) -> Any:
        return torch.stack(inputs)

    def predict(self, images: Any) -> Any:
        return self.runner(images if images.ndim == 4 else images[None])

    def unbatch(self, output: Any) -> list[Any]:
        return list(output)

    def encode_response(self, output: Any) -> dict[str, Any]:
        top = top_of(output.flatten(), self.classes, 1)
        said = {"label": top[0][0], "probability": top[0][1], "candidate": self.candidate}
        return {"predictions": [{**said, "error": None, "waited_ms": None, "computed_ms": None}]}


if __name__ == "__main__":
    bundle, candidate, most, wait, port = sys.argv[1:]
    api = Classifier(bundle, candidate, int(most), float(wait))
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=30)
    server.run(host="127.0.0.1", port=int(port), log_level="warning", generate_client_file=False)
