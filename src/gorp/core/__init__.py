"""Mathematics: tensors in, tensors out. Nothing here knows of models, tasks or files."""
