"""`ForwardWatch` records the inputs of all tokens except padding, in encoder and decoder."""

import pytest
import torch

from gorp.data import Collator, Encoding, encode
from gorp.layers.trainable import linear_layers
from gorp.layers.watch import ForwardWatch
from tests.runs import rows, tiny, tokenizer


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_a_padded_batch_gives_the_inputs_of_its_rows_one_by_one(family):
    """Single rows have no padding. In T5, answers are as long as prompts, so that shapes do not tell them apart."""
    model, encoder_decoder = tiny(family).eval(), family == "t5"
    data = rows(1, 4).add_item({"prompt": "The light " * 5 + "is green. Answer:", "completion": "true"})
    words = tokenizer(family)
    encoded = list(encode(data, words, encoding=Encoding(max_prompt_tokens=64), encoder_decoder=encoder_decoder))
    if encoder_decoder:
        for number, row in enumerate(encoded):
            row["labels"] = (row["labels"] * 30)[: max(1, len(row["input_ids"]) - number)]
        encoded[-1]["labels"] = (encoded[-1]["labels"] * 30)[: len(encoded[-1]["input_ids"])]
    collate = Collator(pad_token_id=words.pad_token_id)
    layers = {name: model.get_submodule(name) for name in linear_layers(model) if "lm_head" not in name}
    found = []
    for batches in ([collate(encoded)], [collate([row]) for row in encoded]):
        moments, counts = {}, {}

        def record(name, x, y, moments=moments, counts=counts):
            assert not x.requires_grad and not y.requires_grad and len(x) == len(y)
            moments[name] = moments.get(name, 0) + x.mT @ x
            counts[name] = counts.get(name, 0) + len(x)

        watch = ForwardWatch(model, layers, record)
        for batch in batches:
            model(**batch)
        watch.remove()
        found.append((moments, counts))
    if encoder_decoder:
        assert collate(encoded)["labels"].shape == collate(encoded)["input_ids"].shape
    assert found[0][1] == found[1][1] and set(found[0][0]) == set(layers)
    for name, moment in found[0][0].items():
        torch.testing.assert_close(moment, found[1][0][name], rtol=1e-4, atol=1e-4, msg=name)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
