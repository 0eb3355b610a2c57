"""The decoder's configuration: every architectural option as data, one key for each constructor argument."""

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

QK_NORMS = ("none", "layer", "rms")
NORM_ORDERS = ("pre", "swin")
# "dynamic" and "longrope" change their frequencies with the length seen: a graph break and a dependence on the batch.
ROPE_TYPES = ("default", *sorted(set(ROPE_INIT_FUNCTIONS) - {"dynamic", "longrope"}))
# what the scaled types cannot do without
ROPE_NEEDS = {
    "linear": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}

# What transformers itself adds to a config.json, or accepts beside the declared fields. Any other key is an error.
_TRANSFORMERS_KEYS = {
    "attn_implementation",
    "auto_map",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "output_attentions",
    "quantization_config",
    "rope_scaling",
    "rope_theta",
    "torch_dtype",
    "transformers_version",
}


class OmnigramConfig(PreTrainedConfig):
    """Shape and options of the decoder. The defaults are a Llama-shaped model of about five million parameters.

    Args:
        vocab_size: number of ids, text, specials and the codes of every modality together.
        hidden_size: width D of the residual stream.
        intermediate_size: width F of the SwiGLU feed-forward.
        num_hidden_layers: number of blocks.
        num_attention_heads: query heads.
        num_key_value_heads: key and value heads; None means as many as query heads, fewer is grouped-query attention.
        head_dim: width of one head; None means hidden_size / num_attention_heads.
        max_position_embeddings: longest document, in tokens, that the model is made for.
        rope_parameters: `rope_type` (default, linear, llama3, proportional or yarn), `rope_theta`, and what that type
            needs (`factor`, ...), as transformers defines them.
        qk_norm: normalise each head's query and key: "none", "layer" (LayerNorm with bias, Chameleon) or "rms".
        qk_norm_per_head: store one weight (and bias) a head instead of one for all heads (Chameleon in transformers).
        norm_order: "pre" is x + f(norm(x)); "swin" is x + norm(f(x)) (Chameleon 34B).
        rms_norm_eps: epsilon of every norm, the query and key norms included.
        attention_bias: biases of the query, key, value and output projections.
        mlp_bias: biases of the feed-forward projections.
        num_experts: feed-forwards of each block that a router chooses among (Mixtral); 0 is a single plain one.
        num_experts_per_token: how many of them each token passes through. Without experts it has no effect.
        balance_loss_weight: weight in the training loss of the router's load-balancing loss (the mean over the layers
            of `experts.load_balancing_loss`), which keeps the experts equally used. Without experts it has no effect.
        modality_ranges: [first id, number of ids] of each modality that has layers of its own (mPLUG-Owl2); every
            other id, text and specials, is modality 0. None when nothing is separate.
        modality_norms: each modality has its own norms before (swin: after) attention and feed-forward.
        modality_key_value: each modality has its own key and value projections.
        embedding_dropout: dropout of the embedded tokens.
        attention_dropout: dropout of the attention probabilities (a slow path on a CPU).
        residual_dropout: dropout of what each attention and feed-forward adds to the residual stream.
        tie_word_embeddings: the head shares the matrix of the embeddings.
        initializer_range: standard deviation of the initial weights, see `OmnigramPreTrainedModel._init_weights`.
        scale_residual_init: divide that deviation by sqrt(2 * num_hidden_layers) for projections into the residual.
        use_cache: keep keys and values by default outside of training.
        pad_token_id, bos_token_id, eos_token_id: the vocabulary's specials, for `generate`.

    Raises:
        ValueError: an unknown key, or values that do not go together; one line that says what to change.
    """

    model_type = "omnigram"
    keys_to_ignore_at_inference = ("past_key_values",)
    base_model_pp_plan = {  # noqa: RUF012 (transformers declares these as plain class attributes)
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 704
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048
    rope_parameters: dict[str, Any] | None = None
    qk_norm: str = "none"
    qk_norm_per_head: bool = False
    norm_order: str = "pre"
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    mlp_bias: bool = False
    num_experts: int = 0
    num_experts_per_token: int = 2
    balance_loss_weight: float = 0.01
    modality_ranges: list[list[int]] | None = None
    modality_norms: bool = False
    modality_key_value: bool = False
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    scale_residual_init: bool = True
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        unknown = sorted(key for key in kwargs if key not in _TRANSFORMERS_KEYS and not key.startswith("_"))
        if unknown:
            raise ValueError(
                f"unknown model option {', '.join(unknown)}: remove it, or correct it (see OmnigramConfig)"
            )
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}: it must be a positive whole number")
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                    f"{self.num_attention_heads}: change one of them, or set head_dim"
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        if isinstance(self.rope_parameters, Mapping):  # a Hydra node, or a dict that the caller keeps
            self.rope_parameters = dict(self.rope_parameters)
        if self.modality_ranges is not None:  # tuples, or a Hydra node
            self.modality_ranges = [list(ids) for ids in self.modality_ranges]
        self._check()
        self._check_experts()
        self._check_modalities()
        self.base_model_tp_plan = self._tensor_parallel_plan()  # pyright: ignore[reportAttributeAccessIssue]
        super().__post_init__(**kwargs)

    @property
    def num_modalities(self) -> int:
        """Modalities with layers of their own, modality 0 included."""
        return 1 + len(self.modality_ranges or ())

    @property
    def separate_modalities(self) -> bool:
        """Whether the decoder has to know the modality of a token."""
        return self.modality_norms or self.modality_key_value

    def _tensor_parallel_plan(self) -> dict[str, str]:
        """How transformers splits the projections over devices, by name; a router stays whole."""
        separate = ".*" if self.modality_key_value else ""
        expert = "experts.*." if self.num_experts else ""
        return {
            "layers.*.self_attn.q_proj": "colwise",
            f"layers.*.self_attn.k_proj{separate}": "colwise",
            f"layers.*.self_attn.v_proj{separate}": "colwise",
            "layers.*.self_attn.o_proj": "rowwise",
            f"layers.*.mlp.{expert}gate_proj": "colwise",
            f"layers.*.mlp.{expert}up_proj": "colwise",
            f"layers.*.mlp.{expert}down_proj": "rowwise",
        }

    def _check(self) -> None:
        """Refuses values that do not go together, in one line each."""
        assert self.num_key_value_heads is not None
        assert self.head_dim is not None
        if self.num_key_value_heads < 1 or self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads {self.num_key_value_heads} does not divide num_attention_heads "
                f"{self.num_attention_heads}: choose a divisor"
            )
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd or below 2: rotary positions turn pairs, make it even")
        if self.qk_norm not in QK_NORMS:
            raise ValueError(f"qk_norm {self.qk_norm!r} is unknown: choose one of {', '.join(QK_NORMS)}")
        if self.qk_norm_per_head and self.qk_norm == "none":
            raise ValueError("qk_norm_per_head needs qk_norm layer or rms: set that, or qk_norm_per_head to false")
        if self.norm_order not in NORM_ORDERS:
            raise ValueError(f"norm_order {self.norm_order!r} is unknown: choose one of {', '.join(NORM_ORDERS)}")
        for name in ("embedding_dropout", "attention_dropout", "residual_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 0 and less than 1")
        rope_type = (self.rope_parameters or {}).get("rope_type", "default")
        if rope_type not in ROPE_TYPES:
            raise ValueError(f"rope_parameters.rope_type {rope_type!r}: choose one of {', '.join(ROPE_TYPES)}")
        for name in ROPE_NEEDS.get(rope_type, ()):
            if name not in (self.rope_parameters or {}):
                raise ValueError(f"rope_parameters.rope_type {rope_type} needs rope_parameters.{name}: add it")

    def _check_experts(self) -> None:
        """Refuses impossible mixtures, in one line each."""
        if self.num_experts < 0 or self.num_experts == 1:
            raise ValueError(f"num_experts is {self.num_experts}: it must be 2 or more, or 0 for a plain feed-forward")
        if self.num_experts and not 1 <= self.num_experts_per_token <= self.num_experts:
            raise ValueError(
                f"num_experts_per_token is {self.num_experts_per_token}: it must be 1 to num_experts {self.num_experts}"
            )
        if not 0.0 <= self.balance_loss_weight < float("inf"):
            raise ValueError(f"balance_loss_weight is {self.balance_loss_weight}: it must be finite and at least 0")

    def _check_modalities(self) -> None:
        """Refuses ranges of ids that are none or overlap, or that nothing uses, in one line each."""
        if self.separate_modalities and not self.modality_ranges:
            name = "modality_norms" if self.modality_norms else "modality_key_value"
            raise ValueError(f"{name} needs modality_ranges, the [first id, number of ids] of each modality: add them")
        if self.modality_ranges is None:
            return
        if not self.separate_modalities:
            raise ValueError(
                "modality_ranges has no effect alone: set modality_norms or modality_key_value, or leave it out"
            )
        end, before = 0, None
        for ids in sorted(self.modality_ranges):
            if len(ids) != 2 or ids[0] < 0 or ids[1] < 1 or sum(ids) > self.vocab_size:
                raise ValueError(
                    f"modality_ranges has {ids}: it must be [first id, number of ids] within the vocabulary of "
                    f"{self.vocab_size} ids"
                )
            if ids[0] < end:
                raise ValueError(f"modality_ranges {before} and {ids} overlap: an id has one modality")
            end, before = sum(ids), ids


AutoConfig.register(OmnigramConfig.model_type, OmnigramConfig, exist_ok=True)
