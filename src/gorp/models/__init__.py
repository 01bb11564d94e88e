"""Load a model and its tokenizer, and test what the model can do."""

from gorp.models.load import ModelConfig, load_model


__all__ = ["ModelConfig", "load_model"]
