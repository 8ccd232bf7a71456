"""Leaves that know nothing of this project: files, paths, progress, signals, processes, SVG."""
