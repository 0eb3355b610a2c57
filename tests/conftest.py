"""All tests: one thread, so that numbers repeat and the suite leaves a busy machine usable; patient property tests."""

import argparse
import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--samples", type=_samples, default=1250, help="how many samples of each block grammar are checked"
    )
    parser.addoption("--kills", type=int, default=0, help="how often test_resume.py kills a training at random")


def _samples(text: str) -> int:
    number = int(text)
    if number < 100:
        raise argparse.ArgumentTypeError(f"{number} must be 100 or more, that there are some of each kind")
    return number


def pytest_configure() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
    torch.set_num_threads(1)
    # fewer examples than usual, and no time limit for each, for the machine may be busy
    settings.register_profile("patient", deadline=None, max_examples=50)
    settings.load_profile("patient")


@pytest.fixture(autouse=True)
def subnormal_numbers() -> Iterator[None]:
    """Training takes subnormal numbers for zero, and the process keeps to it: the next test has them again."""
    yield
    torch.set_flush_denormal(False)
