"""The store of responses: keys, import, export, maintenance."""

from deltalearn.responses.requests import RequestPlan, Settings
from deltalearn.responses.store import ResponseStore

__all__ = ["RequestPlan", "ResponseStore", "Settings"]
