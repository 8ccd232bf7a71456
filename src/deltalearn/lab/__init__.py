"""The embedded default: tiny models and verifiable tasks that show delta learning in two minutes."""
