"""Cells in, results out: in memory and on disk."""
