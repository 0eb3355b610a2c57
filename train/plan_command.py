"""`omnigram plan`: what a training needs, as tables for people and as JSON for programs."""

import argparse
import difflib
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from ..model.memory import Memory
    from .planning import Plan, PlanSettings

Add = Callable[[str, str, Sequence[str], Callable[[argparse.Namespace], int]], argparse.ArgumentParser]
WHOLE = ("gpus", "gpus_per_node", "context")
# field of Memory -> row of the table
PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "weight_casts": "bfloat16 weights",
    "gathered": "gathered layers",
    "activations": "activations",
    "recomputed": "a block recomputed",
    "loss_head": "loss head",
    "total": "total",
}


def add_plan_command(add: Add) -> None:
    """Add the command to the command line."""
    command = add(
        "plan",
        "what a training needs: parameters, memory of a GPU, days, and how to lay it out",
        (
            "model=micro gpus=1 context=512",
            "model=emu3_8b gpus=256 context=8192 tokens=1e12 batch_tokens=4e6",
            "model=7b gpus=64 accelerator=a100 mfu=0.45 --json",
            "model=3b gpus=16 peak=989e12 memory=80 optimizer.muon_learning_rate=null",
        ),
        run_plan,
    )
    command.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="gpus, gpus_per_node, accelerator (or peak= and memory=), margin, mfu, context, tokens, batch_tokens; "
        "or any setting of pretrain",
    )
    command.add_argument("--json", action="store_true", help="one JSON object, for programs")


def run_plan(options: argparse.Namespace) -> int:
    """`omnigram plan`; exit code 1 where nothing fits."""
    from .compose import compose_config
    from .planning import make_plan

    settings, overrides = read_settings(options.overrides)
    plan = make_plan(compose_config(overrides), settings)
    if options.json:
        print(json.dumps(plan.as_dict(), indent=2))
    else:
        _print(plan)
    return 0 if plan.chosen else 1


def read_settings(overrides: Sequence[str]) -> "tuple[PlanSettings, list[str]]":
    """The words of the plan, and the overrides that are the configuration's. ValueError for values of another kind."""
    from .compose import groups
    from .planning import SETTINGS, PlanSettings

    found: dict[str, Any] = {}
    others: list[str] = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key in SETTINGS:
            found[key] = _value(key, value)
            continue
        near = difflib.get_close_matches(key, SETTINGS, n=1, cutoff=0.8)
        if near and key not in groups():
            raise ValueError(f"unknown key {key!r}: did you mean {near[0]}?")
        others.append(override)
    return PlanSettings(**found), others


def _value(key: str, text: str) -> Any:
    if key == "accelerator":
        return text
    if text == "null" and key in ("peak", "memory", "context"):
        return None
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{key}={text} is no number") from None
    if key not in WHOLE:
        return number
    if not number.is_integer():
        raise ValueError(f"{key}={text} is no whole number")
    return int(number)


def _print(plan: "Plan") -> None:
    from rich.console import Console

    console = Console(highlight=False)
    for table in (_parameters(plan), _memory(plan), _training(plan)):
        console.print(table)
        console.print()
    for line in plan.advice:
        console.print(line, soft_wrap=True)


def _table(title: str, *headings: str) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(headings[0], title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for heading in headings[1:]:
        table.add_column(heading, justify="right")
    return table


def _parameters(plan: "Plan") -> "Table":
    counts = plan.parameters
    table = _table(f"{plan.model}, {plan.vocab_size:,} ids", "group", "parameters")
    for group, number in counts.by_group.items():
        table.add_row(group, f"{number:,}")
    table.add_row("total", f"{counts.total:,}", style="bold")
    if counts.active != counts.total:
        table.add_row("active for a token", f"{counts.active:,}")
    return table


def _memory(plan: "Plan") -> "Table":
    from .planning import GIB

    settings, step = plan.settings, plan.step
    shown = {layout.name: memory for layout, memory in plan.one_row.items() if not layout.division.tensor_parallel > 1}
    if plan.chosen is None:  # the one that came nearest
        layout = min(plan.one_row, key=lambda layout: plan.one_row[layout].total)
        shown[layout.name] = plan.one_row[layout]
    columns: list[tuple[str, Memory]] = list(shown.items())
    if plan.chosen and step and (plan.chosen.name not in shown or step.rows > 1):
        columns.append((f"{plan.chosen.name}, {step.rows:,} rows", step.memory))
    title = f"GiB a GPU at 1 row of {settings.context:,} tokens; {settings.budget / GIB:.1f} may be filled"
    table = _table(title, "part", *(name for name, _ in columns))
    for field, name in PARTS.items():
        values = [memory.as_dict()[field] / GIB for _, memory in columns]
        if any(values):
            table.add_row(name, *(_gib(value) for value in values), style="bold" if field == "total" else None)
    return table


def _training(plan: "Plan") -> "Table":
    from .planning import GIB

    settings, step = plan.settings, plan.step
    table = _table("training", "", "")
    table.show_header = False
    table.add_row("precision", plan.precision)
    table.add_row("optimizer", plan.optimizer)
    table.add_row("layout", plan.chosen.name if plan.chosen else "nothing fits", style="bold")
    if step:
        table.add_row("rows a GPU at a time", f"{step.rows:,}")
        table.add_row("gradient accumulation", f"{step.accumulation:,}")
        table.add_row("tokens a step", f"{step.batch_tokens:,}")
        table.add_row("steps", f"{max(1, round(settings.tokens / step.batch_tokens)):,}")
        table.add_row("loss head in chunks, GiB", _gib(step.memory.loss_head / GIB))
        table.add_row("loss head with all logits, GiB", _gib(plan.whole_logits / GIB))
    table.add_row("FLOPs a token", f"{plan.flops_per_token:.3g}")
    table.add_row(f"tokens a day, MFU {settings.mfu:g} of {settings.peak:.3g} FLOP/s", f"{plan.tokens_per_day:.3g}")
    table.add_row(f"days for {settings.tokens:.3g} tokens", f"{plan.days:,.2f}")
    table.add_row("GPU hours", f"{plan.days * 24 * settings.gpus:,.0f}")
    return table


def _gib(value: float) -> str:
    return f"{value:,.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 or not value else f"{value:.4f}"
