"""What the models take from a public encoder: its weights, and what it says of texts both read."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import BertConfig

from scripts.pretrain.__main__ import begin, parser
from scripts.pretrain.card import model_card
from scripts.pretrain.described import described
from scripts.pretrain.models import build, llama_config, t5_config, taken
from scripts.pretrain.objective import Objective
from scripts.pretrain.optimizer import Optimizer
from scripts.pretrain.reading import SHAPES, Reading, passages, whole_words
from scripts.pretrain.stream import to_unit_embeddings
from scripts.pretrain.teacher import Teacher, locate, means, origin, owners, word_starts
from scripts.pretrain.tokenizer import BOS_ID, EOS_ID, load
from tests.scripts.conftest import TOPICS, article


def reading(folders: tuple[Path, Path], encoder: Path, llama: bool = False) -> Reading:
    """Open the passages of the small corpus, two long or six short ones in a batch."""
    packed = folders[1]
    return Reading(packed, load(packed), Teacher(str(encoder), dtype=torch.float32), rows=2, seed=0, llama=llama)


def nearness(objective: Objective, batch: dict[str, Tensor]) -> float:
    """Give the mean cosine of the model's states and the teacher's, both without the teacher's mean."""
    with torch.no_grad():
        _, hidden = objective(batch["input_ids"], batch["attention_mask"])
    states, here = means(hidden, batch["owner"], len(batch["words"]))
    middle, both = batch["words"].mean(0), here & batch["known"]
    return torch.cosine_similarity((states - middle)[both], (batch["words"] - middle)[both]).mean().item()


def test_the_encoder_is_found_and_named(encoder: Path) -> None:
    told = origin(str(encoder))
    assert (told["name"], told["license"], len(told["sha256"])) == ("encoder", "apache-2.0", 64)
    with pytest.raises(FileNotFoundError, match="neither a folder nor an installed package"):
        locate("no_such_encoder")


@given(st.text(alphabet=st.sampled_from("ab1 \n.é—")), st.data())
def test_every_token_belongs_to_the_word_of_its_first_visible_character(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
    offsets = list(pairwise(cuts))
    starts = word_starts(text)
    for (start, end), owner in zip(offsets, owners(text, offsets, starts), strict=True):
        visible = [at for at in range(start, end) if not text[at].isspace()]
        assert (owner == -1) == (not visible)
        if visible:
            assert owner == max(number for number, at in enumerate(starts) if at <= visible[0])


def test_means_are_over_the_tokens_of_a_word() -> None:
    hidden = torch.arange(12.0).reshape(2, 3, 2)
    result, known = means(hidden, torch.tensor([[0, 0, -1], [2, -1, 2]]), 3)
    torch.testing.assert_close(result, torch.tensor([[1.0, 2.0], [0.0, 0.0], [8.0, 9.0]]))
    assert known.tolist() == [True, False, True]


def test_the_teacher_reads_each_text_as_if_it_were_alone(encoder: Path) -> None:
    teacher, texts = Teacher(str(encoder), dtype=torch.float32), ["the river", "A castle of the bishop, near 1984."]
    starts = [word_starts(text) for text in texts]
    words, known, whole = teacher.read(texts, starts)
    assert known.all() and len(words) == sum(map(len, starts))
    hidden = teacher.model(**teacher.tokenizer(texts[0], return_tensors="pt")).last_hidden_state[0]
    torch.testing.assert_close(words[:2], hidden[1:3], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole[0], hidden.mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["t5", "llama"])
def test_a_transplanted_model_begins_near_to_the_encoder(
    architecture: str, folders: tuple[Path, Path], encoder: Path, tmp_path: Path
) -> None:
    texts = reading(folders, encoder, llama=architecture == "llama")
    command = ["train", architecture, str(folders[1]), str(tmp_path), "--tokens", "1"]
    objective = begin(parser().parse_args(command), load(folders[1]), str(encoder), texts)
    config = texts.teacher.model.config
    unlearned = Objective(build(architecture, 0, config, load(folders[1]).get_vocab_size()), 48)
    batch = texts.batch(1)
    assert nearness(objective, batch) > 0.5 > 0.2 > nearness(unlearned, batch)
    assert objective(batch["input_ids"], batch["attention_mask"])[1].shape[-1] == 48


@pytest.mark.parametrize("architecture", ["t5", "llama"])
def test_the_scale_of_the_stream_changes_no_answer(architecture: str) -> None:
    encoder = BertConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
    model = build(architecture, 0, encoder, 60).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3.0)
    ids = torch.randint(0, 60, (2, 7), generator=torch.Generator().manual_seed(0))
    before = model(input_ids=ids, labels=ids).logits
    to_unit_embeddings(model)
    assert model.get_input_embeddings().weight.std().item() == pytest.approx(1)
    after = model(input_ids=ids, labels=ids).logits
    torch.testing.assert_close(after, before, rtol=0, atol=2e-3 * before.std().item())


def test_shapes_follow_the_encoder() -> None:
    minilm = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    for architecture, config in (("t5", t5_config(minilm, 14_592)), ("llama", llama_config(minilm, 14_592))):
        with torch.device("meta"):
            model = build(architecture, 0, minilm, 14_592)
        assert model.config.to_dict() == config.to_dict()
        assert 8e6 < model.num_parameters() < 16e6
    assert taken("t5", BertConfig(num_hidden_layers=3)) == [0, 2]


def test_batches_are_a_function_of_their_number(folders: tuple[Path, Path], encoder: Path) -> None:
    first, second = reading(folders, encoder), reading(folders, encoder)
    second.batch(5)
    for number in range(4):
        one, other = first.batch(number), second.batch(number)
        assert one["input_ids"].shape == (2 * SHAPES[number % 2][1], SHAPES[number % 2][0])
        for name, value in one.items():
            torch.testing.assert_close(value, other[name], rtol=0, atol=0, msg=name)
    seen = [number for batch in range(0, 2 * (len(first.pools[0]) // 6), 2) for number in first.numbers(batch)[0]]
    assert len(set(seen)) == len(seen) and set(seen) <= set(first.pools[0].tolist())


def test_only_unchanged_passages_are_learned_as_text(folders: tuple[Path, Path], encoder: Path) -> None:
    texts = reading(folders, encoder, llama=True)
    for number in range(6):
        batch, (chosen, _) = texts.batch(number), texts.numbers(number)
        ids, mask = batch["input_ids"], batch["attention_mask"].bool()
        assert (ids[:, 0] == BOS_ID).all() and (ids[mask.cumsum(1) == mask.sum(1)[:, None]] == EOS_ID).any()
        clean = torch.from_numpy(texts.clean[chosen])
        assert (batch["labels"][~clean] == -100).all()
        torch.testing.assert_close(batch["labels"][clean][mask[clean]], ids[clean][mask[clean]])


def test_some_passages_are_changed_and_told_so() -> None:
    made = list(passages((article(number) for number in range(200)), ["zebra"], seed=0))
    clean = [text for text, unchanged in made if unchanged]
    assert 0.55 < len(clean) / len(made) < 0.75
    assert not any("zebra" in text for text in clean)
    assert sum("zebra" in text for text, unchanged in made if not unchanged) > 0.9 * (len(made) - len(clean))


def test_a_model_that_says_what_the_teacher_says_is_at_no_distance(folders: tuple[Path, Path], encoder: Path) -> None:
    texts = reading(folders, encoder)
    objective = Objective(build("t5", 0, texts.teacher.model.config, load(folders[1]).get_vocab_size()), 48)
    batches = [texts.batch(number) for number in range(6)]
    objective.measure(batches)
    whole = torch.cat([batch["texts"] for batch in batches])
    whitened = (whole - whole.mean(0)) @ objective.whitening
    assert whitened.square().sum(1).mean().item() == pytest.approx(1.0, rel=1e-4)
    batch = batches[1]
    hidden = torch.where(
        (batch["owner"] >= 0)[:, :, None], batch["words"][batch["owner"].clamp(min=0)], torch.tensor(float("nan"))
    ).nan_to_num()
    sums = torch.zeros(2, 48).index_add_(0, batch["row"], batch["words"])
    batch["texts"] = sums / torch.bincount(batch["row"])[:, None]
    words, passage = objective.distance(hidden, batch)
    assert words.item() == pytest.approx(0.0, abs=1e-9) and passage.item() == pytest.approx(0.0, abs=1e-9)
    moved, _ = objective.distance(hidden + objective.deviation, batch)
    assert moved.item() == pytest.approx(1.0, rel=1e-4)


def test_the_scales_lie_where_the_model_does(folders: tuple[Path, Path], encoder: Path) -> None:
    texts = reading(folders, encoder)
    objective = Objective(build("t5", 0, texts.teacher.model.config, load(folders[1]).get_vocab_size()), 48).to("meta")
    objective.measure([texts.batch(number) for number in range(6)])
    assert objective.deviation.device.type == objective.whitening.device.type == "meta"


def test_the_answer_is_the_word_the_teacher_finds_nearest(encoder: Path) -> None:
    teacher = Teacher(str(encoder), dtype=torch.float32)
    words = whole_words(teacher.tokenizer.backend_tokenizer)
    assert "river" in words and "ing" in words and "##ing" not in words
    texts = [f"the {topic} of the {topic}" for topic in TOPICS]
    made = list(described(texts, words, teacher, seed=0))
    assert made == list(described(texts, words, teacher, seed=0)) and len(made) == len(texts)
    table, read = teacher.texts(words), teacher.texts(sorted(texts, key=len))
    table = torch.nn.functional.normalize(table - table.mean(0), dim=1)
    near = (read - read.mean(0)) @ table.mT
    for row, (prompt, answer) in enumerate(made):
        options = prompt.split("\nOption: ")[1].split(" \n")[0].split(", ")
        assert max(options, key=lambda option: near[row, words.index(option)].item()) == answer


def test_steps_are_in_proportion_to_the_weights(encoder: Path) -> None:
    model = build("t5", 0, Teacher(str(encoder)).model.config, 500)
    objective = Objective(model, 48)
    before = {name: weight.detach().clone() for name, weight in objective.named_parameters()}
    optimizer = Optimizer(objective, 0.01)
    for weight in objective.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step(0.5)
    for name in ("model.encoder.block.0.layer.0.SelfAttention.q.weight", "model.shared.weight"):
        moved = (before[name] - dict(objective.named_parameters())[name]).mean().item()
        assert moved == pytest.approx(0.005 * before[name].std().item(), rel=1e-3)
    assert all(weight.grad is None for weight in objective.parameters() if weight.requires_grad)


def test_the_card_tells_shape_origin_and_a_tenth(encoder: Path) -> None:
    config = t5_config(BertConfig(hidden_size=48, num_hidden_layers=6, num_attention_heads=2), 500)
    curve = [
        {"step": step, "tokens": tokens, "loss": loss, "perplexity": np.exp(loss)}
        for step, tokens, loss in ((0, 0, 6.0), (1, 200, 5.0), (2, 1000, 4.0))
    ]
    told = {"architecture": "t5", "machine": "CPU", "torch": "2", "rows": 2, "seed": 0, "vocabulary": 500}
    told |= {"encoder": origin(str(encoder)), "layers": [0, 2], "reading_shares": (0.7, 0.3), "pair_shares": (0.1, 0.4)}
    told |= {"sessions": [{"tokens": 0, "budget": "1,000 tokens", "rate": 1e-3, "decay": 0.5}]}
    card = model_card("a", told, curve, config, 1000, {"train-0": 1000})
    assert "5 encoder layers and 1 decoder layer of width 56" in card and "1,000 tokens of English" in card
    assert "| 0 | 1,000 tokens | 0.001 | 50% |" in card and "| instructions | 10% | 40% |" in card
    # A tenth is 100 tokens, half way between 6.0 and 5.0.
    assert f"perplexity is {np.exp(4):.0f}; at a tenth of the tokens" in card and f"it was {np.exp(5.5):.0f}." in card
    assert "one public encoder, `encoder` (licence: apache-2.0" in card and "layers 1, 3 of that encoder" in card
