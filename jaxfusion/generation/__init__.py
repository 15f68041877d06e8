"""Generating text: caches, samplers and the decoding loop."""
