"""AdamW for the decoder: matrices decay, embeddings, norms and biases do not."""

import torch
from omegaconf import DictConfig
from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Parameters that decay (matrices but for embeddings, and so for a head tied to them) and those that do not."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decaying = [p for p in trained if p.ndim >= 2 and id(p) not in embeddings]
    chosen = {id(p) for p in decaying}
    rest = [p for p in trained if id(p) not in chosen]
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def build_optimizer(model: nn.Module, settings: DictConfig, device: torch.device) -> torch.optim.Optimizer:
    """AdamW (https://arxiv.org/abs/1711.05101) with the `optimizer` part of the configuration."""
    return torch.optim.AdamW(
        parameter_groups(model, settings.weight_decay),
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        fused=device.type in ("cpu", "cuda"),
    )
