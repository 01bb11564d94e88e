"""One row at a time, where a test speaks of one."""

from typing import Any

from gorp.data import encode_completions, encode_prompts


def encode_prompt(prompt: str, tokenizer: Any, **how: Any) -> list[int]:
    """The ids of one prompt."""
    return encode_prompts([prompt], tokenizer, **how)[0]


def encode_completion(completion: str, tokenizer: Any, *, prompt: str, encoder_decoder: bool) -> list[int]:
    """The ids of one answer with its end."""
    return encode_completions([completion], tokenizer, prompts=[prompt], encoder_decoder=encoder_decoder)[0]
