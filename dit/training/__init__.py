"""Training: state, step, optimizer, averages, checkpoints, and the loop that joins them."""
