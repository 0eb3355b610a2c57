"""Where the time of some work goes: torch's operators one by one, and what passes outside of them."""

import time
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def print_operators(what: str, work: Callable[[], object], rows: int = 12) -> None:
    """Run `work` three times, with the profiler at last, and print a table of the operators with the most time.

    Operators count without those that they call, on the calling thread. Time outside of them is Python's, and the
    profiler's own: how much that is tells the time without it.
    """
    work()
    start = time.perf_counter()
    work()
    alone = time.perf_counter() - start
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        work()
        watched = time.perf_counter() - start
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    inside = sum(event.self_cpu_time_total for event in events) / 1e6
    print(f"\n{what}: {alone:.3f} s, with the profiler {watched:.3f} s")
    print(f"{'operator':40} {'share':>6} {'ms':>9} {'calls':>7} {'us each':>8}")
    for event in events[:rows]:
        spent = event.self_cpu_time_total
        share, each = spent / 1e6 / watched, spent / event.count
        print(f"{event.key:40.40} {share:6.1%} {spent / 1e3:9.1f} {event.count:7} {each:8.1f}")
    rest = sum(event.self_cpu_time_total for event in events[rows:])
    print(f"{f'{max(len(events) - rows, 0)} others':40} {rest / 1e6 / watched:6.1%} {rest / 1e3:9.1f}")
    print(f"{'outside of operators':40} {1 - inside / watched:6.1%} {(watched - inside) * 1e3:9.1f}")
