"""Model x questions -> one score per item; arms compared in pairs, with intervals.

Import from the modules: `reference` needs torch, and what reports read of results does not.
"""
