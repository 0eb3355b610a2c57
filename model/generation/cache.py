"""The keys and values of rows of different lengths, in one preallocated tensor a layer.

A key lies where its position says (left-aligned), so whether a query may see it is `key's place <= query's position`;
what is left behind by padding, by ids that were taken back, or by an earlier owner of a lane lies further right, unseen
until it is written over. Lanes in use are always the first ones: one that ends is replaced by the last.

Dimensions: N lanes, T new tokens, S places in use, G key-value heads, K width of a head.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache


class Store:
    """Keys and values: `layers[2 * i]` are the keys of layer i, [lanes, G, length, K], and the next its values."""

    @torch.inference_mode()  # always: a compiled step would take other tensors for another kind of argument
    def __init__(self, config: PreTrainedConfig, lanes: int, length: int, dtype: torch.dtype, device: torch.device):
        shape = (lanes, config.num_key_value_heads, length, config.head_dim)
        # zeros: what a mask hides must still be finite
        self.layers = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(2 * config.num_hidden_layers)]

    @torch.inference_mode()
    def reserve(self, lanes: int, length: int) -> None:
        """Room for so many lanes of so many tokens; what is there is kept."""
        had_lanes, _, had_length, _ = self.layers[0].shape
        if lanes <= had_lanes and length <= had_length:
            return
        lanes = max(lanes, had_lanes)
        length = had_length if length <= had_length else max(length, had_length + had_length // 2)
        for index, old in enumerate(self.layers):
            new = old.new_zeros(lanes, old.shape[1], length, old.shape[3])
            new[:had_lanes, :, :had_length] = old
            self.layers[index] = new

    def copy(self, source: int, targets: list[int], length: int) -> None:
        """The first `length` places of a lane, into others."""
        for layer in self.layers:
            layer[targets, :, :length] = layer[source, :, :length].clone()  # the two may share storage


class LaneCache(Cache):
    """What the layers of one forward see of the store: a transformers cache that writes each lane at its own places.

    slots: the lanes of the batch; None for the first ones, whose keys are read where they lie
    positions: of the new tokens; the first `span` places are attended to
    """

    def __init__(
        self, store: list[Tensor], slots: Int[Tensor, " n"] | None, positions: Int[Tensor, "n t"], span: int
    ) -> None:
        super().__init__(layers=[])
        self._store, self._slots, self._positions, self._span = store, slots, positions, span

    def update(  # pyright: ignore[reportIncompatibleMethodOverride] (transformers' takes any further arguments)
        self, key_states: Float[Tensor, "n g t k"], value_states: Float[Tensor, "n g t k"], layer_idx: int
    ) -> tuple[Float[Tensor, "n g s k"], Float[Tensor, "n g s k"]]:
        """Called by each layer: stores its new keys and values, gives all of them."""
        slots, count = self._slots, len(self._positions)
        rows = torch.arange(count, device=self._positions.device) if slots is None else slots
        seen: list[Tensor] = []
        for store, states in zip(
            self._store[2 * layer_idx : 2 * layer_idx + 2], (key_states, value_states), strict=True
        ):
            store[rows[:, None], :, self._positions] = states.transpose(1, 2).to(store.dtype)  # autocast's are narrower
            kept = store[:count, :, : self._span] if slots is None else store[slots, :, : self._span]
            seen.append(kept.to(states.dtype))
        return seen[0], seen[1]
