"""Mathematics: functions from tensors to tensors. This package knows nothing of model families, tasks or files."""
