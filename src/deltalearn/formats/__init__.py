"""Rows that other people wrote: preferences, answers, questions, read by one set of rules."""
