"""The keys and values of rows of different lengths, in one preallocated tensor a layer.

A key lies where its position says (left-aligned), so whether a query may see it is `key's place <= query's position`;
what is left behind by padding or by an earlier owner of a lane lies further right, unseen until it is written over.
Lanes in use are always the first ones: one that ends is replaced by the last.

Dimensions: N lanes, T new tokens, S places in use, G key-value heads, K width of a head.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache


class LaneCache(Cache):
    """A transformers cache that writes each lane's keys at their own positions. Call `place` before each forward."""

    def __init__(self, config: PreTrainedConfig, lanes: int, length: int, dtype: torch.dtype, device: torch.device):
        super().__init__(layers=[])
        self._places: tuple[Tensor, Tensor] | None = None
        self._span = 0
        shape = (config.num_hidden_layers, 2, lanes, config.num_key_value_heads, length, config.head_dim)
        self._store = torch.zeros(shape, dtype=dtype, device=device)  # zeros: what a mask hides must still be finite

    def reserve(self, lanes: int, length: int) -> None:
        """Room for so many lanes of so many tokens; what is there is kept."""
        layers, two, had_lanes, heads, had_length, width = self._store.shape
        if lanes <= had_lanes and length <= had_length:
            return
        lanes = max(lanes, had_lanes)
        length = had_length if length <= had_length else max(length, had_length + had_length // 2)
        store = self._store.new_zeros(layers, two, lanes, heads, length, width)
        store[:, :, :had_lanes, :, :had_length] = self._store
        self._store = store

    def place(self, positions: Int[Tensor, "n t"], span: int) -> Bool[Tensor, "n 1 t s"]:
        """The next forward's tokens lie at `positions`, and attend to the first `span` places. -> their mask."""
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        self._places, self._span = (rows, positions), span
        return (torch.arange(span, device=positions.device) <= positions[:, :, None])[:, None]

    def move(self, source: int, target: int) -> None:
        """The lane `target` gets the contents of the lane `source`."""
        self._store[:, :, target] = self._store[:, :, source]

    def update(  # pyright: ignore[reportIncompatibleMethodOverride] (transformers' takes any further arguments)
        self, key_states: Float[Tensor, "n g t k"], value_states: Float[Tensor, "n g t k"], layer_idx: int
    ) -> tuple[Float[Tensor, "n g s k"], Float[Tensor, "n g s k"]]:
        """Called by each layer: stores its new keys and values, gives all of them."""
        assert self._places is not None, "place() comes before the forward"
        rows, positions = self._places
        both = self._store[layer_idx]
        for store, states in zip(both, (key_states, value_states), strict=True):
            store[rows, :, positions] = states.transpose(1, 2).to(store.dtype)  # autocast makes narrower ones
        keys, values = both[:, : len(rows), :, : self._span].to(key_states.dtype)
        return keys, values
