"""What a training step keeps from the forward for the backward pass: bytes a token, operation by operation.

The method is that of https://arxiv.org/abs/2205.05198 (section 4.1), for the operations of this decoder as they are run
eagerly; a compiled one keeps less. Activation checkpointing: https://arxiv.org/abs/1604.06174, a block at a time.
Dimensions: N tokens, T tokens of a row, D width of the model, H query heads, G key-value heads, K width of a head,
F width of the feed-forward, E experts, V vocabulary.
"""

from typing import NamedTuple

from .configuration import OmnigramConfig
from .loss import CHUNK_LOGITS, CHUNK_TOKENS

STATISTICS = 4  # bytes of what is always float32: statistics of norms, softmax denominators, widened inputs of norms
INDEX = 8  # bytes of an id


class Precision(NamedTuple):
    """Bytes of one number: of the weights as the layers see them, of the residual stream, and in matrix products."""

    weight: int
    stream: int
    product: int


FLOAT32 = Precision(4, 4, 4)
# Lightning's bf16-mixed: float32 weights, bfloat16 products, a residual stream of float32
AUTOCAST = Precision(4, 4, 2)
BFLOAT16 = Precision(2, 2, 2)  # what a layer of FSDP2 sees when its param_dtype is bfloat16


def kept_bytes(
    config: OmnigramConfig,
    precision: Precision,
    length: int,
    checkpointing: bool,
    tensor_parallel: int = 1,
    on_cpu: bool = False,
) -> float:
    """Bytes a token that are kept until the backward pass, without those of the loss (`loss_bytes`).

    Args:
        length: T, tokens of a row; of the kernels, eager and sdpa keep something for each pair of tokens.
        checkpointing: keep only each block's input, and compute the rest again in the backward pass.
        tensor_parallel: devices over which heads and feed-forward are divided; norms and stream are on each.
        on_cpu: as packed rows are trained on a CPU, which attends document by document and has wider dropout masks.
    """
    width = config.hidden_size
    shared = 2 * INDEX + 2 * (config.head_dim or 0) * precision.stream  # ids, documents, cosine and sine
    shared += _dropout(config.embedding_dropout, precision.stream, on_cpu) * width
    if config._attn_implementation == "sdpa" and not on_cpu:
        shared += length  # the mask of a row, one byte a pair
    elif config._attn_implementation == "eager":
        shared += length * precision.stream
    last = _norm(width, precision.stream)
    if checkpointing:
        block = float(precision.stream * width)
    else:
        block = block_bytes(config, precision, length, tensor_parallel, on_cpu)
    return shared + config.num_hidden_layers * block + last


def block_bytes(
    config: OmnigramConfig, precision: Precision, length: int, tensor_parallel: int = 1, on_cpu: bool = False
) -> float:
    """Bytes a token that one block keeps without checkpointing, and for a moment when it is computed again."""
    weight, stream, product = precision
    width = config.hidden_size
    norm_first = config.norm_order == "pre"
    normed = max(weight, stream) if norm_first else stream  # bytes of what attention and feed-forward are given
    num_norms = config.num_modalities if config.modality_norms else 1
    num_keys = config.num_modalities if config.modality_key_value else 1
    norm = _norm(width, stream if norm_first else product, num_norms)
    mask = _dropout(config.residual_dropout, stream if stream == product else product, on_cpu) * width

    kept = 2 * (norm + mask) + _inputs(width, normed, 1 + 2 * num_keys, product)
    kept += _attention(config, precision, length, on_cpu) / tensor_parallel
    kept += 2 * (num_norms - 1) + 2 * (num_keys - 1)  # which tokens are of a modality
    if config.num_experts:
        return kept + _experts(config, normed, product, tensor_parallel)
    return kept + _inputs(width, normed, 2, product) + _feed_forward(config, product) / tensor_parallel


class LossBytes(NamedTuple):
    """The most memory that head and loss take, in bytes: by `loss.weighted_cross_entropy`, and with all logits."""

    chunked: float
    whole: float


def loss_bytes(config: OmnigramConfig, precision: Precision, tokens: int) -> LossBytes:
    """What the head's loss of `tokens` tokens takes beside the weights and their gradients.

    Chunked: the gradients of the hidden states [N, D] and, in float32, of the head [V, D] are made in the forward pass
    and scaled where they are in the backward pass. Beside them is a chunk of logits and, where products are narrower
    than float32, the product that is being added, or at last the gradient in the head's own type.
    Whole: in the backward pass of torch's cross-entropy the float32 log-softmax [N, V] and its gradients on both sides.
    """
    weight, stream, product = precision
    width, vocabulary = config.hidden_size, config.vocab_size
    hidden = tokens * width * max(weight, stream)
    chunk = min(tokens, max(CHUNK_TOKENS, CHUNK_LOGITS // vocabulary))
    narrow = product if product < STATISTICS else 0
    chunked = hidden + vocabulary * (width + chunk) * (STATISTICS + narrow)
    return LossBytes(chunked, 3.0 * STATISTICS * tokens * vocabulary)


def _norm(size: int, given: int, num_norms: int = 1) -> float:
    """RMSNorm: its input in float32 (the input itself if that is float32), and the normalised before its weight."""
    wide = STATISTICS * size * (1 if given == STATISTICS else num_norms)
    return wide + num_norms * (given * size + STATISTICS)


def _inputs(size: int, given: int, num_linear: int, product: int) -> float:
    """The input of linear layers: shared by them, but where autocast narrows it for each of them anew."""
    return size * product * (1 if given == product else num_linear)


def _dropout(rate: float, given: int, on_cpu: bool) -> int:
    """The mask: a byte a number on a GPU, the noise itself on a CPU."""
    return (given if on_cpu else 1) if rate else 0


def _attention(config: OmnigramConfig, precision: Precision, length: int, on_cpu: bool) -> float:
    """Query-key norms, queries, keys, values, the output, and what the kernel keeps of the softmax."""
    assert config.head_dim is not None
    assert config.num_key_value_heads is not None
    heads, groups, product = config.num_attention_heads, config.num_key_value_heads, precision.product
    kept = 0.0
    if config.qk_norm == "rms":
        kept += sum(_norm(n * config.head_dim, product) + STATISTICS * (n - 1) for n in (heads, groups))
    elif config.qk_norm == "layer":  # autocast computes it in float32, but on a CPU
        wide = product if on_cpu else max(precision.weight, product)
        kept += (heads + groups) * (2 * wide * config.head_dim + 2 * STATISTICS)
    implementation = config._attn_implementation
    repeated = implementation in ("sdpa", "eager")  # flash and flex kernels take fewer key and value heads as they are
    kept += (2 * heads + 2 * (heads if repeated else groups)) * config.head_dim * product
    if implementation == "eager":
        narrow = product if product < STATISTICS else 0
        kept += heads * length * (STATISTICS + narrow)
        return kept + heads * length * _dropout(config.attention_dropout, product, on_cpu)
    if implementation == "sdpa" and not on_cpu:
        kept += length * product  # torch makes numbers of the mask, for each call
    return kept + heads * STATISTICS


def _feed_forward(config: OmnigramConfig, product: int) -> float:
    """Gate, its silu, up, and their product."""
    return 4 * config.intermediate_size * product


def _experts(config: OmnigramConfig, normed: int, product: int, tensor_parallel: int) -> float:
    """Router, the K copies of a token, the experts' insides and outputs."""
    width, chosen = config.hidden_size, config.num_experts_per_token
    kept = _inputs(width, normed, 1, product)
    kept += STATISTICS * (config.num_experts + 2 * chosen + 2) + 3 * INDEX * chosen
    kept += _inputs(chosen * width, normed, 2, product) + chosen * _feed_forward(config, product) / tensor_parallel
    return kept + chosen * width * normed
