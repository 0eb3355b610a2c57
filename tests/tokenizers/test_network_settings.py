"""Settings of networks that cannot be: each is named, in one line."""

from typing import Any

import pytest
from made_networks import SMALL

from omnigram.tokenizers.kinds import kind_settings
from omnigram.tokenizers.networks import network_config


@pytest.mark.parametrize(
    ("network", "changes", "message"),
    [
        ("vqgan", {"base_channels": 48}, r"base_channels 48 .* must be multiples of the 32 groups"),
        ("vqgan", {"channel_multiplier": []}, "at least one level"),
        ("vqgan", {"attention_levels": [3]}, r"attention_levels=\[3\] must be indices of the 3 levels .*: 0 \.\. 2"),
        ("vqgan", {"latent_channels": 0}, "latent_channels 0 must be 1 or more"),
        ("movqgan", {"temporal_downsample_factor": 3}, r"temporal_downsample_factor 3 must be 1, 2, 4, …"),
        ("movqgan", {"attention_levels": [-1]}, r"attention_levels=\[-1\] must be indices"),
        ("dvae", {"base_channels": 6}, r"base_channels=6 times .*\[1, 1, 2\] must be multiples of 4"),
        ("dvae", {"channel_multiplier": []}, "must be multiples of 4"),
        ("vit", {"hidden_size": 36}, r"hidden_size=36 must be a multiple of four times .*num_attention_heads=2"),
        ("queries", {"num_attention_heads": 3}, r"hidden_size=32 must be a multiple of four times"),
        ("queries", {"resolution": 18}, r"resolution=18 must be a multiple of .*patch_size=4"),
        ("queries", {"kind": "magic"}, r"network\.kind=magic is unknown: there is convolutional, "),
        ("queries", {"levels": 3}, r"network\.levels is no setting of queries, which takes resolution, "),
    ],
)
def test_settings_that_cannot_be_are_named(network: str, changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message) as caught:
        network_config({**kind_settings(SMALL[network]), **changes})
    assert "\n" not in str(caught.value)
