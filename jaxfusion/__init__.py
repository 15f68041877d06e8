"""JaxFusion."""
