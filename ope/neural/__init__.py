"""Batched networks, transitions sampled on the device, and the one training loop of all learners."""
