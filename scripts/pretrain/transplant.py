"""The weights of a BERT encoder put into a T5 encoder or a Llama, which then begin near to what it computes.

BERT normalizes after each sublayer f_i, with γ_i, β_i; T5 and Llama before, without centring and without biases:

    BERT     x_i = γ_i ⊙ (z_i - mean z_i) / σ_i + β_i,    z_{i+1} = x_i + f_i(x_i)
    here     n_i = w_i ⊙ u_i / rms(u_i),                  u_{i+1} = u_i + g_i(n_i)

The stream u_i stands for z_i ≈ E_i ⊙ u_i + k_i with a scale E_i and a constant k_i, d numbers each. With σ̄_i, ρ_i the
medians of σ_i and of rms(u_i) / σ_i over some text,

    w_i = ρ_i γ_i E_i,    c_i = β_i + γ_i k_i / σ̄_i,    x_i ≈ n_i + c_i,
    E_{i+1} = γ_i E_i / σ̄_i,    k_{i+1} = c_i + (output bias of f_i),
    g_i = centred (f_i without that bias) / E_{i+1}.

Of the neurons those are kept whose share of the output varies most: the deviation of the activation times the length
of the output weight. What the others add on average goes to the output bias.

The constants c_i and the input biases reach the sublayers through a few more coordinates of the stream, in which every
token has the same number κ and whose norm weight makes them read 1; κ² times their count is ‖k_0‖². What is lost: σ_i
differs between tokens, absolute positions (their mean is kept), and in the Llama whatever comes later in the text. The
training that follows mends it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import BertModel, LlamaForCausalLM, T5ForConditionalGeneration

from scripts.pretrain.teacher import Teacher
from scripts.pretrain.tokenizer import in_encoder


GELU_AS_SILU = 1.702
"""GELU(h) is about SiLU(1.702 h) / 1.702. Source: Hendrycks & Gimpel 2016."""

UP_DEVIATION = 0.006
"""Standard deviation of the Llama's `up` projections around their constant."""

FRESH = 0.1
"""Size of a new layer's output beside the stream."""


@dataclass(frozen=True, kw_only=True)
class Norm:
    """The norm before one sublayer, and the stream after it."""

    weight: Tensor
    """w with the constant coordinates last."""
    constant: Tensor
    """c, what its reader adds."""
    scale: Tensor
    """E of the stream after the sublayer."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer that is taken."""

    own: nn.Module
    """The encoder's layer."""
    first: Norm
    """Before its attention."""
    second: Norm
    """Before its neurons."""
    neurons: Tensor
    """Numbers of the neurons that are kept."""


class Walk:
    """Goes through the encoder norm by norm and keeps E and k."""

    def __init__(self, teacher: Teacher, texts: Sequence[str], extra: int, neurons: int) -> None:
        """Begin at the embeddings.

        Args:
            teacher: The encoder, in float32.
            texts: Some text, for the medians and the choice of neurons.
            extra: Constant coordinates.
            neurons: How many of a layer are kept.
        """
        self.encoder, self.norms, self.extra, self.at = teacher.model, norms(teacher.model), extra, 0
        table, layers = self.encoder.embeddings, self.encoder.encoder.layer
        inner = [layer.output.dense for layer in layers]
        read = read_along(teacher, texts, [*self.norms, *inner])
        self.inputs, activations = read[: len(self.norms)], read[len(self.norms) :]
        size = [part.std(0) * dense.weight.norm(dim=0) for part, dense in zip(activations, inner, strict=True)]
        self.neurons = [part.topk(neurons).indices.sort().values for part in size]
        self.activation = [part.mean(0) for part in activations]
        self.mean = table.word_embeddings.weight.mean(0)
        told = self.mean + table.position_embeddings.weight[1:64].mean(0) + table.token_type_embeddings.weight[0]
        self.k = told - told.mean()
        self.scale = torch.ones_like(self.k)
        self.kappa = (self.k.square().sum() / extra).sqrt()

    def next(self, bias: Tensor | None = None) -> Norm:
        """Give the next norm.

        Args:
            bias: Output bias of the sublayer before it.
        """
        if bias is not None:
            self.k = self.k + bias
        self.k = self.k - self.k.mean()
        norm, z = self.norms[self.at], self.inputs[self.at]
        deviation = z.std(1, unbiased=False)
        stream = (z - z.mean(1, keepdim=True) - self.k) / self.scale
        rms = ((stream.square().sum(1) + self.extra * self.kappa**2) / (z.shape[1] + self.extra)).sqrt()
        ratio, typical = (rms / deviation).median(), deviation.median()
        weight = torch.cat([ratio * norm.weight * self.scale, (rms.median() / self.kappa).expand(self.extra)])
        constant = norm.bias + norm.weight * self.k / typical
        self.scale, self.k, self.at = norm.weight * self.scale / typical, constant, self.at + 1
        return Norm(weight=weight, constant=constant, scale=self.scale)

    def through(self, layers: Sequence[int]) -> tuple[list[Layer], Norm]:
        """Go through all layers.

        Args:
            layers: Numbers of those that are taken; the stream passes the others by.

        Returns:
            The taken ones, and the norm after the last.
        """
        found, bias = [], None
        for number, layer in enumerate(self.encoder.encoder.layer):
            first = self.next(bias)
            value, output = layer.attention.self.value, layer.attention.output.dense
            # Weights of one sum pass constant values on.
            bias = output.bias + output.weight @ (value.weight @ first.constant + value.bias)
            second = self.next(bias if number in layers else None)
            bias = None
            if number in layers:
                outer, kept, typical = layer.output.dense, self.neurons[number], self.activation[number]
                bias = outer.bias + outer.weight @ typical.index_fill(0, kept, 0.0)
                found.append(Layer(own=layer, first=first, second=second, neurons=kept))
        return found, self.next(bias)

    def attention(self, layer: nn.Module, norm: Norm) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Give the projections of queries, keys, values and output; `through` has what values add to every token."""
        own = layer.attention.self
        return (
            self.reading(own.query, norm),
            self.reading(own.key, norm, biased=False),  # a bias of the keys shifts all scores of a query alike
            self.reading(own.value, norm).index_fill(1, self.constants, 0.0),
            self.writing(layer.attention.output.dense.weight, norm),
        )

    @property
    def constants(self) -> Tensor:
        """Places of the constant coordinates."""
        return torch.arange(len(self.k), len(self.k) + self.extra)

    def reading(self, linear: nn.Linear, norm: Norm, biased: bool = True) -> Tensor:
        """Give a projection that reads the stream: W for the varying part, W c + b from the constant coordinates."""
        told = linear.weight @ norm.constant + (linear.bias if biased else 0)
        return torch.cat([linear.weight, (told / self.extra)[:, None].expand(-1, self.extra)], dim=1)

    def writing(self, weight: Tensor, norm: Norm) -> Tensor:
        """Give a projection that writes to the stream: centred, in the stream's scale, nothing to the constants."""
        centred = (weight - weight.mean(0)) / norm.scale[:, None]
        return torch.cat([centred, weight.new_zeros(self.extra, weight.shape[1])])


def norms(encoder: BertModel) -> list[nn.LayerNorm]:
    """List the encoder's norms in order: of the embeddings, then two of each layer."""
    found = [encoder.embeddings.LayerNorm]
    for layer in encoder.encoder.layer:
        found += [layer.attention.output.LayerNorm, layer.output.LayerNorm]
    return found


@torch.no_grad()
def read_along(teacher: Teacher, texts: Sequence[str], modules: Sequence[nn.Module]) -> list[Tensor]:
    """Run texts through the encoder and keep what goes into each of some modules, tokens x width."""
    kept: list[list[Tensor]] = [[] for _ in modules]
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, own=own: own.append(inputs[0].flatten(0, 1)))
        for module, own in zip(modules, kept, strict=True)
    ]
    for text in texts:
        teacher.texts([text])
    for hook in hooks:
        hook.remove()
    return [torch.cat(pieces) for pieces in kept]


def embeddings(walk: Walk, teacher: Teacher, tokenizer: Tokenizer) -> Tensor:
    """Give the stream's beginning: the encoder's vector of each piece, V x (d + extra)."""
    table, known = teacher.model.embeddings.word_embeddings.weight, teacher.tokenizer.get_vocab()
    pieces = (in_encoder(tokenizer.id_to_token(number) or "") for number in range(tokenizer.get_vocab_size()))
    vectors = torch.stack([table[known[piece]] if piece in known else walk.mean for piece in pieces]) - walk.mean
    vectors = vectors - vectors.mean(1, keepdim=True)
    return torch.cat([vectors, walk.kappa.expand(len(vectors), walk.extra)], dim=1)


@torch.no_grad()
def into_t5(
    model: T5ForConditionalGeneration,
    teacher: Teacher,
    tokenizer: Tokenizer,
    layers: Sequence[int],
    texts: Sequence[str],
) -> Tensor:
    """Put the encoder's weights into the T5's encoder.

    Args:
        model: As wide as the encoder and a few coordinates more.
        teacher: The encoder, in float32.
        tokenizer: Tokenizer of the model.
        layers: The encoder's layers that are taken, in order, as many as the model's encoder has.
        texts: Some text, for the medians.

    Returns:
        The constant that brings the model's encoder output to the teacher's, d numbers.
    """
    walk = Walk(teacher, texts, model.config.d_model - teacher.width, model.config.d_ff)
    found, last = walk.through(layers)
    for block, layer in zip(model.encoder.block, found, strict=True):
        attention, inner, outer = block.layer[0].SelfAttention, layer.own.intermediate.dense, layer.own.output.dense
        query, key, value, output = walk.attention(layer.own, layer.first)
        block.layer[0].layer_norm.weight.copy_(layer.first.weight)
        # T5 does not divide the scores by the root of the head's width.
        attention.q.weight.copy_(query / layer.own.attention.self.attention_head_size**0.5)
        attention.k.weight.copy_(key)
        attention.v.weight.copy_(value)
        attention.o.weight.copy_(output)
        block.layer[1].layer_norm.weight.copy_(layer.second.weight)
        block.layer[1].DenseReluDense.wi.weight.copy_(walk.reading(inner, layer.second)[layer.neurons])
        block.layer[1].DenseReluDense.wo.weight.copy_(walk.writing(outer.weight[:, layer.neurons], layer.second))
    model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.zero_()
    model.shared.weight.copy_(embeddings(walk, teacher, tokenizer))
    model.encoder.final_layer_norm.weight.copy_(last.weight)
    for block in model.decoder.block:
        for part in (
            block.layer[0].SelfAttention.o,
            block.layer[1].EncDecAttention.o,
            block.layer[2].DenseReluDense.wo,
        ):
            part.weight.mul_(FRESH)
    # T5 divides the logits by the root of the width, for embeddings of deviation 1; the encoder's are far smaller.
    model.decoder.final_layer_norm.weight.fill_(model.config.d_model**0.5)
    return last.constant


@torch.no_grad()
def into_llama(
    model: LlamaForCausalLM, teacher: Teacher, tokenizer: Tokenizer, layers: Sequence[int], texts: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Put the encoder's weights into the Llama's first layers; those after them begin small.

    Args:
        model: As wide as the encoder and a few coordinates more.
        teacher: The encoder, in float32.
        tokenizer: Tokenizer of the model.
        layers: The encoder's layers that are taken, in order, fewer than the model has.
        texts: Some text, for the medians.

    Returns:
        Weight of a norm, and the constant, that bring the stream after those layers to the teacher's output.
    """
    walk = Walk(teacher, texts, model.config.hidden_size - teacher.width, model.config.intermediate_size)
    found, last = walk.through(layers)
    for block, layer in zip(model.model.layers, found, strict=False):
        attention, inner, outer = block.self_attn, layer.own.intermediate.dense, layer.own.output.dense
        query, key, value, output = walk.attention(layer.own, layer.first)
        block.input_layernorm.weight.copy_(layer.first.weight)
        attention.q_proj.weight.copy_(query)
        attention.k_proj.weight.copy_(key)
        attention.v_proj.weight.copy_(value)
        attention.o_proj.weight.copy_(output)
        block.post_attention_layernorm.weight.copy_(layer.second.weight)
        block.mlp.gate_proj.weight.copy_(GELU_AS_SILU * walk.reading(inner, layer.second)[layer.neurons])
        up = torch.randn_like(block.mlp.up_proj.weight) * UP_DEVIATION
        block.mlp.up_proj.weight.copy_(up.index_fill(1, walk.constants, 1 / walk.extra))
        block.mlp.down_proj.weight.copy_(walk.writing(outer.weight[:, layer.neurons], layer.second) / GELU_AS_SILU)
    typical = last.weight[-1] * walk.kappa
    for block in model.model.layers[len(found) :]:
        block.self_attn.o_proj.weight.mul_(FRESH * typical)
        block.mlp.down_proj.weight.mul_(FRESH * typical)
    model.model.embed_tokens.weight.copy_(embeddings(walk, teacher, tokenizer))
    return last.weight, last.constant
