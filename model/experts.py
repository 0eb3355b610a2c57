"""Mixture of experts: a router sends each token through a few of many feed-forwards.

Top-k routing with weights renormalised over the chosen: https://arxiv.org/abs/2401.04088 (Mixtral). Load-balancing
loss: https://arxiv.org/abs/2101.03961 (Switch, equations 4 to 6).
An expert is a plain `FeedForward`, so that whatever works on linear layers (Muon, LoRA, initialisation, weight decay)
works on experts. No token is dropped: an expert takes as many as are sent to it.
Dimensions: B batch, T tokens of a row, N = B * T, D width of the model, E experts, K experts a token.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .configuration import OmnigramConfig
from .feed_forward import FeedForward


class MixtureOfExperts(nn.Module):
    """Each token's sum over its K likeliest experts, weighted by the router."""

    def __init__(self, config: OmnigramConfig) -> None:
        super().__init__()
        self.num_chosen = config.num_experts_per_token
        self.router = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = nn.ModuleList(FeedForward(config) for _ in range(config.num_experts))

    def forward(
        self, x: Float[Tensor, "b t d"], counted: Bool[Tensor, "b t"] | None = None
    ) -> tuple[Float[Tensor, "b t d"], Float[Tensor, ""]]:
        """Returns the output and the load-balancing loss of the tokens `counted` (None: of all)."""
        tokens = x.flatten(0, 1)
        probabilities = self.router(tokens).softmax(dim=-1, dtype=torch.float32)
        weights, chosen = probabilities.topk(self.num_chosen, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        out = self._through_experts(tokens, chosen) * weights[..., None].to(x.dtype)
        balance = load_balancing_loss(probabilities, chosen, None if counted is None else counted.flatten())
        return out.sum(dim=1).unflatten(0, x.shape[:2]), balance

    def _through_experts(self, tokens: Float[Tensor, "n d"], chosen: Int[Tensor, "n k"]) -> Float[Tensor, "n k d"]:
        """What each chosen expert makes of its token. Sorted by expert, the tokens of each lie side by side.

        An expert that no token chose runs on none, so that its gradient is zero and not absent (as DDP asks).
        """
        order = chosen.flatten().argsort(stable=True)
        sizes = F.one_hot(chosen.flatten(), len(self.experts)).sum(dim=0).tolist()
        parts = tokens[order // self.num_chosen].split(sizes)
        done = torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)])
        return done[order.argsort()].to(tokens.dtype).unflatten(0, chosen.shape)


def load_balancing_loss(
    probabilities: Float[Tensor, "n e"], chosen: Int[Tensor, "n k"], counted: Bool[Tensor, " n"] | None = None
) -> Float[Tensor, ""]:
    """E * sum over experts of (share of tokens that chose it) * (mean of its probability).

    K when all experts are used alike, up to E when K of them take everything. The shares add up to K, as in Mixtral
    (in Switch K is 1); only the probabilities carry a gradient. The tokens outside of `counted` are left out.
    """
    choices = F.one_hot(chosen, probabilities.shape[-1]).sum(dim=1).to(probabilities.dtype)
    if counted is None:
        counted = torch.ones_like(chosen[:, 0], dtype=torch.bool)
    weight = counted.to(probabilities.dtype)
    total = weight.sum().clamp_min(1)
    return probabilities.shape[-1] * ((weight @ choices) * (weight @ probabilities)).sum() / total.square()
