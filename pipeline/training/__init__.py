"""Training: the loop, its data order, optimizers, losses, metrics and what a run resumes from."""
