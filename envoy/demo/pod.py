"""A model pod: one version of the model behind the Open Inference Protocol (v2).

    python -m envoy.demo.pod --version 2 --port 8082 --otlp 127.0.0.1:4317 --models DIR

It knows nothing of Turnout but four span attributes. Every inference is a server span that
continues the caller's trace and carries the prediction; spans go over OTLP/gRPC.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import sklearn
import uvicorn
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import extract
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from threadpoolctl import threadpool_limits

from envoy.demo.models import MODEL_NAME, PIXELS, Classifier, Floats, fails, load
from turnout import contract

FAILING_VERSION: Final = "3"
# On every answer, so that a client knows who served it.
VERSION_HEADER: Final = "x-model-version"
_EXPORT_EVERY_MS: Final = 500
_EXPORT_TIMEOUT_MS: Final = 2000
_BODY_BYTES_MAX: Final = 64 * 1024


class InvalidInference(ValueError):
    """The body is not an inference request for this model."""


def parse(body: bytes) -> tuple[str, Floats]:
    """The request's id and its row.

    Raises:
        InvalidInference: What is wrong with the body.
    """
    try:
        message = json.loads(body)
        tensor = message["inputs"][0]
        row = np.asarray(tensor["data"], dtype=np.float64).reshape(-1)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise InvalidInference(f"not an inference request: {error!r}") from error
    if len(message["inputs"]) != 1 or row.size != PIXELS or not np.isfinite(row).all():
        raise InvalidInference(f"one input of {PIXELS} finite numbers is wanted, got {row.size}")
    return str(message.get("id", "")), row


class Pod:
    """The ASGI application of one model version."""

    def __init__(self, classifier: Classifier, tracer: Tracer) -> None:
        self._classifier = classifier
        self._tracer = tracer
        self.version = classifier.version

    def routes(self) -> list[Route]:
        """The Open Inference Protocol's paths."""
        model = f"/v2/models/{MODEL_NAME}"
        versioned = f"{model}/versions/{self.version}"
        return [
            Route("/v2/health/live", self.healthy),
            Route("/v2/health/ready", self.healthy),
            Route("/v2", self.server_metadata),
            *(Route(path, self.model_metadata) for path in (model, versioned)),
            *(Route(f"{path}/ready", self.healthy) for path in (model, versioned)),
            *(Route(f"{path}/infer", self.infer, methods=["POST"]) for path in (model, versioned)),
        ]

    async def healthy(self, _request: Request) -> Response:
        """Live, and ready: the model is loaded before the socket is opened."""
        return self._json({"live": True, "ready": True})

    async def server_metadata(self, _request: Request) -> Response:
        """Who serves."""
        return self._json({"name": "turnout-demo-pod", "version": self.version, "extensions": []})

    async def model_metadata(self, _request: Request) -> Response:
        """What the model takes and gives."""
        return self._json(
            {
                "name": MODEL_NAME,
                "versions": [self.version],
                "platform": "scikit-learn",
                "inputs": [{"name": "pixels", "datatype": "FP64", "shape": [1, PIXELS]}],
                "outputs": [
                    {"name": "digit", "datatype": "INT64", "shape": [1]},
                    {"name": "score", "datatype": "FP64", "shape": [1]},
                ],
            }
        )

    async def infer(self, request: Request) -> Response:
        """Classify one row, inside a span."""
        with self._tracer.start_as_current_span(
            f"infer {MODEL_NAME}", context=extract(request.headers), kind=SpanKind.SERVER
        ) as span:
            request_id = request.headers.get(contract.HEADER_REQUEST_ID, "")
            span.set_attribute(contract.ATTRIBUTE_REQUEST_ID, request_id)
            if contract.HEADER_SHADOW_OF in request.headers:
                span.set_attribute(contract.ATTRIBUTE_SHADOW, True)
            body = await request.body()
            try:
                if len(body) > _BODY_BYTES_MAX:
                    raise InvalidInference(f"the body is larger than {_BODY_BYTES_MAX} bytes")
                identity, row = parse(body)
            except InvalidInference as error:
                return self._json({"error": str(error)}, status=400)
            if self.version == FAILING_VERSION and fails(row.tobytes()):
                span.set_status(Status(StatusCode.ERROR, "the model failed on this input"))
                return self._json({"error": "the model failed on this input"}, status=500)
            answer = self._classifier.answer(row)
            span.set_attribute(contract.ATTRIBUTE_PREDICTION, str(answer.digit))
            span.set_attribute(contract.ATTRIBUTE_SCORE, answer.score)
            return self._json(self._outputs(identity or request_id, answer.digit, answer.score))

    def _outputs(self, identity: str, digit: int, score: float) -> dict[str, Any]:
        return {
            "model_name": MODEL_NAME,
            "model_version": self.version,
            "id": identity,
            "outputs": [
                {"name": "digit", "datatype": "INT64", "shape": [1], "data": [digit]},
                {"name": "score", "datatype": "FP64", "shape": [1], "data": [score]},
            ],
        }

    def _json(self, content: dict[str, Any], *, status: int = 200) -> Response:
        return JSONResponse(content, status_code=status, headers={VERSION_HEADER: self.version})


def tracing(version: str, otlp: str | None) -> TracerProvider:
    """A tracer provider that samples what the caller sampled and exports every half second."""
    provider = TracerProvider(
        resource=Resource.create(
            {"service.name": f"{MODEL_NAME}-v{version}", "service.version": version}
        )
    )
    if otlp is not None:
        exporter = OTLPSpanExporter(endpoint=otlp, insecure=True, timeout=_EXPORT_TIMEOUT_MS / 1000)
        provider.add_span_processor(
            BatchSpanProcessor(exporter, schedule_delay_millis=_EXPORT_EVERY_MS)
        )
    return provider


def application(classifier: Classifier, provider: TracerProvider) -> Starlette:
    """The ASGI application; its spans are flushed when it stops."""

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(provider.shutdown)

    pod = Pod(classifier, provider.get_tracer("turnout.demo"))
    return Starlette(routes=pod.routes(), lifespan=lifespan)


def main() -> None:
    """Serve one version until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--version", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--otlp", help="HOST:PORT of an OTLP/gRPC receiver")
    parser.add_argument("--models", type=Path, required=True, help="where fitted models are kept")
    options = parser.parse_args()
    # One row at a time: the numeric libraries' thread pools would only fight over the cores.
    threadpool_limits(limits=1)
    # `parse` has looked at every number already.
    sklearn.set_config(assume_finite=True, skip_parameter_validation=True)
    classifier = load(options.version, options.models)
    uvicorn.run(
        application(classifier, tracing(options.version, options.otlp)),
        host="127.0.0.1",
        port=options.port,
        loop="uvloop",
        access_log=False,
        log_level="warning",
        timeout_keep_alive=3600,
        timeout_graceful_shutdown=3,
    )


if __name__ == "__main__":
    main()
