"""Token embeddings taken from a public encoder instead of at random.

Every piece of the vocabulary is read by the teacher alone, as in static-embedding distillation (Tulkens & van Dongen
2024, "model2vec"). The vectors are centred, reduced by principal components to one coordinate less than the model's
width, and brought to one length. Pieces that the teacher cannot tell apart ("The", " the") would have one and the same
vector, so a little noise is mixed in. The last coordinate is the standardized log frequency in the corpus: with tied
embeddings the head then begins near the frequencies of the tokens, along one direction.
"""

import numpy as np
import torch
from tokenizers import Tokenizer, decoders
from torch import Tensor

from scripts.pretrain.teacher import Teacher
from scripts.pretrain.tokenizer import FIRST_SENTINEL, SENTINELS


NOISE = 0.3
"""Share of the noise in a vector's length."""

FREQUENCY = 2.0
"""Standard deviation of the frequency coordinate, in those of the others."""


def taught_embeddings(tokenizer: Tokenizer, teacher: Teacher, counts: np.ndarray, width: int, seed: int) -> Tensor:
    """Make the embeddings.

    Args:
        tokenizer: Tokenizer with V tokens.
        teacher: Who reads the pieces; its width must not be under the model's.
        counts: How often each token occurs in the corpus, V.
        width: Width d of the model.
        seed: Seed of the noise.

    Returns:
        float32, V x d; standard deviation 1 over all entries but the last of each row. Special tokens, and bytes that
        are no text alone, are noise.

    Raises:
        ValueError: The teacher is too narrow.
    """
    if teacher.width < width:
        raise ValueError(f"The encoder is {teacher.width} wide, the model {width}; name an encoder at least as wide.")
    size = tokenizer.get_vocab_size()
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(size, width - 1, generator=generator)
    decoder = decoders.ByteLevel()
    texts = [decoder.decode([tokenizer.id_to_token(number) or ""]).strip() for number in range(size)]
    first = FIRST_SENTINEL + len(SENTINELS)
    known = [number for number in range(first, size) if texts[number] and "�" not in texts[number]]
    known.sort(key=lambda number: len(texts[number]))
    read = [teacher.texts([texts[number] for number in known[at : at + 256]]) for at in range(0, len(known), 256)]
    vectors = torch.cat(read)
    vectors -= vectors.mean(dim=0)
    reduced = vectors @ torch.linalg.eigh(vectors.mT @ vectors).eigenvectors[:, 1 - width :]
    reduced *= (width - 1) ** 0.5 / reduced.norm(dim=1, keepdim=True).clamp(min=1e-6)
    result = noise.clone()
    result[known] = (1 - NOISE**2) ** 0.5 * reduced + NOISE * noise[known]
    frequency = torch.from_numpy(np.log1p(counts)).float()
    frequency = FREQUENCY * (frequency - frequency.mean()) / frequency.std().clamp(min=1e-6)
    return torch.cat([result, frequency[:, None]], dim=1)
