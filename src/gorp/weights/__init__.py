"""Exact representation of weights: the base weights W0 and the sum of the deltas that tasks added."""
