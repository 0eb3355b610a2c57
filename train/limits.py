"""What the numbers of the configuration have to be, so that a wrong one is said before anything is made."""

import math
from collections.abc import Callable, Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

# By the last words of a key. Limits of several settings together or of the data are those of the constructors.
LIMITS: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    (
        "1 or more",
        lambda n: n >= 1,
        "threads samples_per_shard max_caption max_pixels vocab_size resolution max_ratio stem channels layers "
        "encoder_kernel codebook_dim max_steps batch_size init_pictures log_every_n_steps validate_every_n_steps "
        "validation_pictures "
        "checkpoint_every_n_steps checkpoints_kept accumulation tensor_parallel evaluation_batch_size tokens.workers "
        "processes rows lookahead group_shards max_pictures queries heldout_queries gallery attempts hidden_size "
        "intermediate_size "
        "num_hidden_layers num_attention_heads num_key_value_heads head_dim max_position_embeddings guard_steps "
        "num_experts_per_token codebooks latent_channels base_channels channel_multiplier "
        "num_res_blocks patch_size num_queries encoder_layers decoder_layers decoder_channels "
        "temporal_downsample_factor nodes tasks_per_node cpus_per_task timeout_min warning_s array_parallelism",
    ),
    ("2 or more", lambda n: n >= 2, "codebook_size length"),
    ("3 or more", lambda n: n >= 3, "scalar_levels"),
    ("8 or more", lambda n: n >= 8, "pixels"),
    (
        "0 or more",
        lambda n: n >= 0,
        "encoder_blocks decoder_blocks encoder_attention decoder_attention attention_levels commitment rate "
        "l1 l2 perceptual quantizer entropy diversity kl weight lecam start_step learning_rate "
        "muon_learning_rate weight_decay warmup_steps "
        "words_to_picture picture_to_words page text image prefetch z_loss validation_documents sample_pictures "
        "checkpoint_kept_every_n_steps workers max_skipped_steps num_experts balance_loss_weight temperature top_k "
        "gigabytes gpus_per_node max_requeues pad_token_id bos_token_id eos_token_id",
    ),
    (
        "above 0",
        lambda n: n > 0,
        "timeout pause eps gradient_clip rope_theta rms_norm_eps initializer_range repetition_penalty mem_gb poll_s "
        "final_temperature max_weight start_below",
    ),
    ("above 1", lambda n: n > 1, "guard_ratio"),
    (
        "from 0 to 1",
        lambda n: 0 <= n <= 1,
        "max_skipped max_damaged final_ratio ema_decay caption_dropout tail_dropout min_p",
    ),
    (
        "at least 0 and less than 1",
        lambda n: 0 <= n < 1,
        "val test heldout_style beta1 beta2 embedding_dropout attention_dropout residual_dropout dead_code_threshold",
    ),
    ("above 0 and less than 1", lambda n: 0 < n < 1, "decay"),
    ("above 0 and at most 1", lambda n: 0 < n <= 1, "top_p share"),
    ("from 0.98 to 1", lambda n: 0.98 <= n <= 1, "character_coverage"),
    ("from 0 to 4294967295", lambda n: 0 <= n < 2**32, "seed"),  # what every generator of random numbers takes
    ("a finite number", lambda n: True, "guidance picture_guidance"),
)


def check_limits(key: str, value: Any) -> None:
    """ValueError for a number that is outside the limits of its key."""
    if value is None or isinstance(value, DictConfig):
        return
    for words, holds, names in LIMITS:
        if not any(f".{key}".endswith(f".{name}") for name in names.split()):
            continue
        for number in _numbers(value):
            is_number = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
            if not is_number or not holds(number):
                raise ValueError(f"{key}={shown(value)} must be {words}")


def _numbers(value: Any) -> Iterator[Any]:
    """The value, or those of a list, which may hold lists."""
    if OmegaConf.is_list(value):
        for part in value:
            yield from _numbers(part)
    else:
        yield value


def check_rows(config: DictConfig, processes: int) -> None:
    """ValueError unless the rows of a batch can be dealt to processes and cut into parts."""
    rows, parts, tensor = config.loader.rows, config.trainer.accumulation, config.trainer.tensor_parallel
    dealt = max(1, processes // tensor)
    if rows % (dealt * parts):
        ranks = f"{dealt} processes" if tensor == 1 else f"{dealt} groups of {tensor} processes"
        cut = f"{parts} parts (trainer.accumulation)"
        named = " of ".join([ranks] * (dealt > 1) + [cut] * (parts > 1))
        raise ValueError(f"loader.rows={rows} cannot be dealt to {named}: set a multiple of {dealt * parts}")


def shown(value: Any) -> str:
    """A value as it is written in an override."""
    if OmegaConf.is_config(value):
        return str(OmegaConf.to_container(value)).replace(" ", "").replace("'", "")
    return str(value).lower() if isinstance(value, bool) else str(value)
