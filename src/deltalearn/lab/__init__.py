"""The embedded default: tiny models and verifiable tasks that show delta learning quickly."""
