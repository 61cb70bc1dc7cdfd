"""Training: the loop, its steps, its plan."""
