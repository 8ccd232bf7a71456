"""What answers requests: transformers, vLLM, Ray, OpenAI-compatible servers."""
