"""Servers that speak OpenAI's API: where they are, how fast to ask, what they say."""

from deltalearn.openai_api.endpoint import Endpoint

__all__ = ["Endpoint"]
