"""Data: sources, tasks, tokenising, packing and loading."""
