"""Training: the pure step (state, optimizer, losses, step) and the loop around it (loop, checkpoint, metrics, ...)."""
