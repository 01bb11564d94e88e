"""Loading a model and its tokenizer, and what they can do."""

from gorp.models.load import ModelConfig, load_model


__all__ = ["ModelConfig", "load_model"]
