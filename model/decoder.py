"""The decoder-only transformer over the one vocabulary of all modalities, as a transformers model.

Dimensions: B batch, T tokens of a row, S tokens seen so far, D width of the model, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, MoeCausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .attention import Attention, document_mask, document_positions
from .block import DecoderBlock
from .configuration import OmnigramConfig
from .feed_forward import ResidualProjection
from .loss import LossParts, Partition, weighted_cross_entropy
from .modality_layers import modality_of
from .norms import HeadLayerNorm, RMSNorm
from .rotary import RotaryEmbedding, rotary_frequencies


class OmnigramPreTrainedModel(PreTrainedModel):
    """What transformers must know of the model, and how its weights begin."""

    config: OmnigramConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    config_class = OmnigramConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderBlock"]  # noqa: RUF012 (transformers declares these as plain class attributes)
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012 (as transformers declares it)
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": DecoderBlock, "attentions": Attention}  # noqa: RUF012 (as transformers declares it)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialises one module; transformers calls it for every module whose weights no checkpoint gave.

        | weights                                       | initialised as                                          |
        | --------------------------------------------- | ------------------------------------------------------- |
        | embed_tokens, lm_head (one matrix when tied)  | normal, std = initializer_range                         |
        | q_proj, k_proj, v_proj, gate_proj, up_proj,   | normal, std = initializer_range                         |
        | router                                        |                                                         |
        | o_proj, down_proj                             | normal, std = initializer_range / sqrt(2 * layers),     |
        |                                               | plain initializer_range with scale_residual_init: false |
        | every bias                                    | 0                                                       |
        | every norm's weight                           | 1                                                       |

        The division keeps the residual stream's variance independent of depth (GPT-2). Each expert, and each modality's
        own layers, are drawn independently, as the plain ones are.
        """
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            if isinstance(module, ResidualProjection) and self.config.scale_residual_init:
                std /= math.sqrt(2 * self.config.num_hidden_layers)
            init.normal_(module.weight, mean=0.0, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=std)
        elif isinstance(module, RMSNorm | HeadLayerNorm):
            init.ones_(module.weight)
            if isinstance(module, HeadLayerNorm):
                init.zeros_(module.bias)
        elif isinstance(module, RotaryEmbedding):  # not in checkpoints, and lost when built on the meta device
            init.copy_(module.inverse_frequency, rotary_frequencies(self.config)[0])


@dataclass
class DecoderOutput(BaseModelOutputWithPast):
    """aux_loss: mean over the layers of their load-balancing losses; None without experts."""

    aux_loss: Tensor | None = None


class OmnigramModel(OmnigramPreTrainedModel):
    """Embeddings, the blocks and the last norm: ids to hidden states."""

    def __init__(self, config: OmnigramConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList(DecoderBlock(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: Int[Tensor, "b t"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "b t"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "b t d"] | None = None,
        document_ids: Int[Tensor, "b t"] | None = None,
        modality_ids: Int[Tensor, "b t"] | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> DecoderOutput:
        """Runs the decoder.

        Args:
            input_ids: ids of the vocabulary; or give `inputs_embeds`.
            attention_mask: [B, S], 0 for padding (left or right), as `generate` passes it; 4-dimensional masks and
                block masks are used as they are.
            position_ids: rotary positions; by default they count from the tokens already in the cache, or restart with
                every document of `document_ids`.
            past_key_values: cache of the keys and values seen.
            inputs_embeds: embeddings instead of ids.
            document_ids: the document of each token of a packed row, -1 for pads: attention stays within documents,
                with every attention implementation. Not together with a cache or an attention_mask.
            modality_ids: modality of each of the `inputs_embeds`, 0 text and specials, k the k-th of
                `config.modality_ranges`; only where a modality has layers of its own. Ids have theirs by their range,
                and whatever is given with them is not read.
            use_cache: return a cache; by default `config.use_cache`, but never in training or for packed rows.
            kwargs: handed to the attention implementation.

        Raises:
            ValueError: both or neither of ids and embeddings; document_ids with a mask or a cache; embeddings without
                modality_ids where these are needed.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if self.config.separate_modalities:
            if input_ids is not None:
                modality_ids = modality_of(input_ids, self.config)
            elif modality_ids is None:
                raise ValueError("inputs_embeds need modality_ids, as each modality has its own layers: give both")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        assert inputs_embeds is not None
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and document_ids is None
        if self.gradient_checkpointing and self.training:
            use_cache = False
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)

        if document_ids is not None:
            if attention_mask is not None or past_key_values is not None:
                raise ValueError("document_ids go with neither attention_mask nor a cache: unpack the rows first")
            if position_ids is None:
                position_ids = document_positions(document_ids)
            mask = None
            if "cu_seq_lens_q" not in kwargs:  # flash-attention's bounds, when the caller has them already
                mask, bounds = document_mask(self.config, document_ids, inputs_embeds.dtype)
                kwargs.update(bounds)
        else:
            if position_ids is None:
                seen = past_key_values.get_seq_length() if past_key_values is not None else 0
                position_ids = (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen)[None]
            mask = create_causal_mask(self.config, inputs_embeds, attention_mask, past_key_values, position_ids)

        rotary = self.rotary_emb(position_ids, inputs_embeds.dtype)
        x = self.dropout(inputs_embeds)
        counted = self._real_tokens(attention_mask, document_ids, x.shape[1]) if self.config.num_experts else None
        balances: list[Tensor] = []
        for layer in self.layers:
            out = layer(
                x,
                rotary,
                mask,
                past_key_values,
                modality_ids=modality_ids,
                counted=counted,
                position_ids=position_ids,
                **kwargs,
            )
            x, *balance = out if isinstance(out, tuple) else (out,)
            balances += balance
        return DecoderOutput(
            last_hidden_state=self.norm(x),
            past_key_values=past_key_values,
            aux_loss=torch.stack(balances).mean() if balances else None,
        )

    @staticmethod
    def _real_tokens(attention_mask: Any, document_ids: Tensor | None, length: int) -> Tensor | None:
        """[B, T] true for the tokens that are no pads, None where no argument tells."""
        if document_ids is not None:
            return document_ids >= 0
        if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
            return attention_mask[:, -length:] > 0
        return None


class OmnigramForCausalLM(OmnigramPreTrainedModel, GenerationMixin):
    """The decoder with its head: trained by `training_loss`, used by `generate` and the samplers."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 (as transformers declares it)
    _tp_plan = {"lm_head": "colwise_gather_output"}  # noqa: RUF012 (as transformers declares it)

    def __init__(self, config: OmnigramConfig) -> None:
        super().__init__(config)
        self.model = OmnigramModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Int[Tensor, "b t"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "b t"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "b t d"] | None = None,
        document_ids: Int[Tensor, "b t"] | None = None,
        modality_ids: Int[Tensor, "b t"] | None = None,
        labels: Int[Tensor, "b t"] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast:
        """Logits, as every causal model of transformers gives them; see `OmnigramModel.forward` for the arguments.

        Args:
            labels: ids to predict, not shifted (the model shifts), -100 where there is no loss. With experts the
                loss contains the weighted load-balancing loss, which is also in `aux_loss`.
            logits_to_keep: compute the logits of the last so many tokens only, or of these indices; 0 means of all.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            document_ids=document_ids,
            modality_ids=modality_ids,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
            if outputs.aux_loss is not None:
                loss = loss + self.config.balance_loss_weight * outputs.aux_loss
        return MoeCausalLMOutputWithPast(
            loss=loss,
            aux_loss=outputs.aux_loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def training_loss(
        self,
        input_ids: Int[Tensor, "b t"],
        targets: Int[Tensor, "b t"],
        weights: Float[Tensor, "b t"],
        document_ids: Int[Tensor, "b t"] | None = None,
        position_ids: Int[Tensor, "b t"] | None = None,
        partitions: list[Partition] | None = None,
        target_partition: Int[Tensor, "b t"] | None = None,
        z_loss: float = 0.0,
    ) -> LossParts:
        """Weighted loss of a packed batch, without ever holding its logits; see `loss.weighted_cross_entropy`.

        `targets` are aligned: targets[b, t] follows input_ids[b, t]. With experts `loss` also holds the weighted
        load-balancing loss, times the sum of weights, so that micro-batches and ranks add up. Under FSDP2 register this
        method with `torch.distributed.fsdp.register_fsdp_forward_method`: the head's weight is gathered for it.
        """
        outputs = self.model(input_ids, position_ids=position_ids, document_ids=document_ids)
        parts = weighted_cross_entropy(
            outputs.last_hidden_state.flatten(0, 1),
            self.lm_head.weight,
            targets.flatten(),
            weights.flatten(),
            partitions=partitions,
            target_partition=None if target_partition is None else target_partition.flatten(),
            z_loss=z_loss,
        )
        if outputs.aux_loss is None:
            return parts
        return parts._replace(loss=parts.loss + self.config.balance_loss_weight * outputs.aux_loss * parts.weight)


AutoModel.register(OmnigramConfig, OmnigramModel, exist_ok=True)
AutoModelForCausalLM.register(OmnigramConfig, OmnigramForCausalLM, exist_ok=True)
