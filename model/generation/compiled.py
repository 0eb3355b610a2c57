"""`run` through torch.compile: a program for one id a lane, one for several, whatever their numbers.

Dimensions: N lanes, T tokens that are fed, D width of the model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch._dynamo import config as dynamo_config
from torch.compiler import set_stance
from torch.fx.experimental import _config as shapes_config
from transformers import PreTrainedModel

from .forward import Step, run

_MISSED = "skip_guard_eval_unsafe"  # what torch's error says where no program fits and none may be made


class CompiledRun:
    """The programs of one model.

    Before a program runs, torch.compile looks whether all that it was made of is as it was, module by module: a fifth
    of a step of a small model. So that is done once a call for each of the programs, and again where none fits.
    """

    def __init__(self) -> None:
        # programs belong to a code object: with one of its own a model never meets those of another
        own = FunctionType(run.__code__.replace(), run.__globals__, run.__name__)
        self._step = torch.compile(own, dynamic=True)

    def of_a_call(self) -> Step:
        """For one call of the sampler, during which the model stays what it is but for the values of its weights.

        torch keeps what is looked at for the whole process: not for models that are compiled in several threads.
        """
        met: set[bool] = set()

        def step(
            model: PreTrainedModel,
            store: list[Tensor],
            ids: Int[Tensor, "n t"],
            positions: Int[Tensor, "n t"],
            span: int,
            slots: Int[Tensor, " n"] | None,
        ) -> Float[Tensor, "n t d"]:
            if (several := ids.shape[1] > 1) in met:
                try:
                    with set_stance(skip_guard_eval_unsafe=True):
                        return self._step(model, store, ids, positions, span, slots)
                except RuntimeError as fault:
                    if _MISSED not in str(fault):  # else nothing has run yet
                        raise
            met.add(several)
            with _compiling():
                return self._step(model, store, ids, positions, span, slots)

        return step


@contextmanager
def _compiling() -> Iterator[None]:
    """How programs are made: numbers of the model, such as the epsilon of a norm, are constants of the program."""
    with (
        # two sizes that are equal once, such as lanes and ids, are not taken to be always equal
        shapes_config.patch(use_duck_shape=False),  # pyright: ignore[reportAttributeAccessIssue] (made at import)
        dynamo_config.patch(specialize_float=True),  # pyright: ignore[reportAttributeAccessIssue] (likewise)
    ):
        yield
