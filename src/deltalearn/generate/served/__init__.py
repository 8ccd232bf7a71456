"""Models behind an OpenAI-compatible server: asked over HTTP, with every fault accounted for."""

from deltalearn.generate.served.endpoint import Endpoint
from deltalearn.generate.served.engine import ServedEngine

__all__ = ["Endpoint", "ServedEngine"]
