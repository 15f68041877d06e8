"""Text: tokenizers, word segmentation, stop words and post-processing."""
