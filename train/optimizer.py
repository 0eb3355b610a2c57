"""AdamW for everything, or Muon for the matrices of hidden layers and AdamW for the rest."""

from collections.abc import Sequence

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from ..tokenizers.quantizers.quantizer import Quantizer
from .muon import Muon

NEWTON_SCHULZ_STEPS = 3  # of Muon: in the tokenizer as good as the usual five, and cheaper (docs/LOG.md)


def hidden_matrices(module: nn.Module) -> list[Tensor]:
    """Trained weights of linear layers, but for a head, which turns the last layer into logits, and a quantizer's."""
    head = module.get_output_embeddings() if isinstance(module, PreTrainedModel) else None
    of_codes = {id(part) for m in module.modules() if isinstance(m, Quantizer) for part in m.modules()}
    linear = (m for m in module.modules() if isinstance(m, nn.Linear) and m is not head and id(m) not in of_codes)
    return [m.weight for m in linear if m.weight.requires_grad]


def parameter_groups(
    module: nn.Module, weight_decay: float, left_out: Sequence[Tensor] = ()
) -> list[dict[str, object]]:
    """Parameters that decay (of two dimensions or more, but for embeddings and a head tied to them), and the others.

    A group without parameters is left out.
    """
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    apart = {id(p) for p in left_out}
    trained = [p for p in module.parameters() if p.requires_grad and id(p) not in apart]
    decaying = [p for p in trained if p.ndim >= 2 and id(p) not in embeddings]
    chosen = {id(p) for p in decaying}
    rest = [p for p in trained if id(p) not in chosen]
    return [
        {"params": parameters, "weight_decay": decay}
        for parameters, decay in ((decaying, weight_decay), (rest, 0.0))
        if parameters  # checkpoints of several optimizers take no empty group
    ]


def build_optimizers(module: nn.Module, settings: DictConfig, device: torch.device) -> list[Optimizer]:
    """The optimizers of an `optimizer` part of the configuration, at their peak learning rates, AdamW first.

    AdamW (https://arxiv.org/abs/1711.05101), and with `muon_learning_rate` Muon for the hidden matrices, its updates
    scaled to the length of AdamW's (https://arxiv.org/abs/2502.16982, section 2.2). Muon's momentum is torch's .95;
    `beta1`, `beta2` and `eps` are AdamW's.
    """
    rate: float | None = settings.muon_learning_rate
    matrices = [] if rate is None else hidden_matrices(module)
    made: list[Optimizer] = []
    if groups := parameter_groups(module, settings.weight_decay, matrices):
        betas, fused = (settings.beta1, settings.beta2), device.type in ("cpu", "cuda")
        made.append(torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas, eps=settings.eps, fused=fused))
    if rate is not None and matrices:
        made.append(Muon(matrices, lr=rate, weight_decay=settings.weight_decay, ns_steps=NEWTON_SCHULZ_STEPS))
    for optimizer in made:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]  # torch's name for the rate that a schedule scales
    return made


def scale_learning_rates(optimizers: Sequence[Optimizer], factor: float) -> None:
    """Set every learning rate to this share of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor


def learning_rates(optimizers: Sequence[Optimizer]) -> dict[str, float]:
    """The rates of now, by the names that their peaks have in the configuration."""
    return {
        "muon_learning_rate" if isinstance(optimizer, Muon) else "learning_rate": group["lr"]
        for optimizer in optimizers
        for group in optimizer.param_groups
    }


def named_rates(settings: DictConfig, part: str = "optimizer") -> str:
    """The peaks as one would write them to change them, for messages."""
    named = [name for name in ("learning_rate", "muon_learning_rate") if settings[name] is not None]
    return " and ".join(f"{part}.{name}={settings[name]}" for name in named)
