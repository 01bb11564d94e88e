"""The protected subspace S as a method stores it, coverage and output change of each task, and the task report."""
