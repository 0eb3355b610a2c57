"""What a loader's state is: that of each stream, sums over streams, and how it is dealt to another number of them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

State = dict[str, Any]


@dataclass
class Seen:
    """Counted since the start of training."""

    documents: int = 0  # composed, those that wait included
    split: int = 0  # of these, longer than a row and split
    dropped: int = 0  # segments longer than a row and left out
    tokens: int = 0
    pairs: int = 0  # of a token and one it sees
    places: int = 0  # rows x length of the batches
    sources: dict[str, int] = field(default_factory=dict)  # documents by the data set they are of
    damaged: dict[str, int] = field(default_factory=dict)  # documents left out, by reason

    @classmethod
    def of(cls, state: Any) -> "Seen":
        """The sum of all streams in a state of a `Loader`, or in a list of such."""
        total = cls()
        for one in streams_of(state):
            for name, value in one["seen"].items():
                there = getattr(total, name)
                if isinstance(value, dict):
                    value = {key: there.get(key, 0) + value.get(key, 0) for key in sorted({*there, *value})}
                    there = {}
                setattr(total, name, value if isinstance(value, dict) else there + value)
        return total

    @property
    def fill(self) -> float:
        """Share of the places that held a token."""
        return self.tokens / max(1, self.places)


def check_state(state: Mapping[str, Any], stream: str, rank: int, world: int) -> None:
    """ValueError unless a state was left by this stream."""
    for name, value in {"stream": stream, "rank": rank, "world": world}.items():
        if state.get(name, value) != value:
            what = {
                "stream": "the loader's state belongs to other data, mixture, seed, kinds or length; start a new run",
                "rank": "the loader's state belongs to another rank; give each rank its own",
                "world": "the number of ranks changed: pass the states of all ranks through reshard()",
            }[name]
            raise ValueError(f"{what} ({name} is {value}, the state has {state[name]})")


def streams_of(state: Any) -> list[Mapping[str, Any]]:
    """The states of streams in one of a `PackedStream`, of a `Loader` (`{"streams": […]}`), or in a list of such."""
    if isinstance(state, Mapping):
        return streams_of(state["streams"]) if "streams" in state else [state]
    return [one for part in state for one in streams_of(part)]


def reshard(states: Any, world: int) -> list[State]:
    """States of all old ranks and workers -> states of `world` new streams: what no batch held yet is dealt anew.

    Nothing is trained on twice or lost, of a document in pieces neither. ValueError if a stream's state is missing.
    """
    states = streams_of(states)
    old = {int(state["rank"]): state for state in states}
    count = int(states[0]["world"])
    if len(old) < len(states) or {int(state["world"]) for state in states} != {count} or set(old) != set(range(count)):
        raise ValueError(f"the states of streams {sorted(old)} are not one of each of {count}: give those of all ranks")
    if len({state["stream"] for state in states}) > 1:
        raise ValueError("these states were left by different runs: give those of one checkpoint")
    stop = max(int(state["next"]) for state in states)
    left: dict[int, list[int]] = {}  # position -> its pieces, [] for all of a document that nobody composed
    for state in states:
        left.update({position: [] for position in range(int(state["next"]), stop, count)})
        left.update({entry: [] for entry in state["queued"] if isinstance(entry, int)})
        cut = ((entry[0], entry[1:]) for entry in state["queued"] if not isinstance(entry, int))
        for position, pieces in [*grouped(state["waiting"]), *cut]:
            left[position] = sorted([*left.get(position, []), *pieces])
    queued = [[position, *left[position]] if left[position] else position for position in sorted(left)]
    return [
        {
            "stream": states[0]["stream"],
            "rank": rank,
            "world": world,
            "next": stop + rank,
            "queued": queued[rank::world],
            "waiting": [],
            "windows": {},
            "seen": asdict(Seen.of(states) if rank == 0 else Seen()),
        }
        for rank in range(world)
    ]


def grouped(waiting: Iterable[Sequence[int]]) -> Iterator[tuple[int, list[int]]]:
    """Neighbouring (position, piece) of one document together."""
    for position, pairs in groupby(waiting, key=lambda pair: pair[0]):
        yield position, [piece for _, piece in pairs]
