"""The configuration: every shipped file composes, what is not in it is refused in one line with near names."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from omnigram.train.compose import compose_config, compose_each, groups
from omnigram.train.limits import LIMITS

CONF = Path(__file__).resolve().parents[1] / "conf"
NEEDED = {
    "data=folder": ["data.name=mine", "data.source.path=/pictures"],
    "model=export": ["model.path=/export"],
    "data=webdataset": ["data.name=mine", "data.source.urls='/shards/{0..3}.tar'"],
}
OPTIONS = [f"{group}={option}" for group, options in groups().items() for option in options]


def test_the_groups_are_the_files() -> None:
    files = {
        f"{path.parent.relative_to(CONF).as_posix()}={path.stem}"
        for path in CONF.rglob("*.yaml")
        if path.parent != CONF
    }
    assert set(OPTIONS) == files
    parts = {"tokenizer/network", "tokenizer/quantizer"}
    assert set(groups()) == {"data", "tokenizer", *parts, "model", "train", "launcher", "experiment"}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_file_composes_and_resolves(option: str) -> None:
    config = compose_config([option, *NEEDED.get(option, [])])
    resolved = OmegaConf.to_container(config, resolve=True)
    assert isinstance(resolved, dict)
    assert "hydra" not in resolved
    if option.startswith("model="):
        assert config.model_name == option.removeprefix("model=")


@pytest.mark.parametrize("file", sorted(CONF.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONF)))
def test_every_file_begins_with_what_it_is(file: Path) -> None:
    first, *rest = file.read_text(encoding="utf-8").splitlines()
    assert (rest[0] if first.startswith("# @package") else first).startswith("# ")


def test_a_key_that_is_there_changes() -> None:
    config = compose_config(["model=nano", "trainer.max_steps=7", "data.source.languages=[en,de]", "threads=2"])
    assert (config.trainer.max_steps, list(config.data.source.languages), config.threads) == (7, ["en", "de"], 2)
    assert config.data.folder == "datasets/emoji"


def test_the_adversary_can_be_left_unguarded_or_held_back() -> None:
    changes = ["tokenizer.discriminator.guard_ratio=null", "tokenizer.discriminator.start_below=0.02"]
    adversary = compose_config(["tokenizer=movqgan", *changes]).tokenizer.discriminator
    assert (adversary.guard_ratio, adversary.start_below) == (None, 0.02)


def test_a_key_can_be_added_to_what_the_model_takes() -> None:
    config = compose_config(["+model.rope_parameters.factor=4.0", "tokenizer.discriminator=null"])
    assert config.model.rope_parameters.factor == 4.0


FAULTS = [
    (["model=mico"], "unknown model 'mico': did you mean micro"),
    (["model="], "unknown model '': There is 1b, "),
    (["tokenizer=vq"], "unknown tokenizer 'vq': did you mean vqvae?"),
    (["mode=micro"], "unknown key 'mode': did you mean model?"),
    (["seeed=1"], "unknown key 'seeed': did you mean seed?"),
    (["model.hiden_size=3"], "unknown key 'model.hiden_size': did you mean model.hidden_size?"),
    (["max_steps=3"], "did you mean tokenizer.trainer.max_steps or trainer.max_steps?"),
    (["languages=[en]"], "did you mean data.source.languages?"),
    (["tokenizer.zzz=1"], "unknown key 'tokenizer.zzz': tokenizer holds network, "),
    (["seed.a=1"], "unknown key 'seed.a'"),
    (["trainer.max_steps=1e3"], "trainer.max_steps is a whole number, as in trainer.max_steps="),
    (["trainer.max_steps=many"], "trainer.max_steps is a whole number"),
    (["optimizer.learning_rate=fast"], "optimizer.learning_rate is a number"),
    (["deterministic=1"], "deterministic is true or false, as in deterministic=true"),
    (["logger=csv"], "logger takes a list, as in logger=[csv,tensorboard]"),
    (["tokenizer.network=3"], "tokenizer.network has parts, which are written {part:value}"),
    (["launcher.poll_s=3"], "unknown key 'launcher.poll_s': it belongs to launcher=slurm, which is not chosen"),
    (["seed=[1]"], "seed is a whole number|seed takes a single value"),
    (["model=export"], "model=export needs model.path=…: add what it should be"),
    (["data=folder"], "data=folder needs data.name=… and data.source.path=…"),
    (["seed=${foo}"], "seed: Interpolation key 'foo' not found"),
    (["~model"], "model cannot be left out"),
    (["trainer.max_steps=null"], "trainer.max_steps cannot be null, give it a value as in trainer.max_steps="),
    (["hydra.run.dir=/x"], "settings of Hydra itself have no effect"),
    (["model=nano,micro"], "names several values: add -m"),
    (["model"], "'model' is no setting"),
    (["seed==3"], "'seed==3' cannot be read"),
    (["data.name=é"], "quote the value"),
    (["+model=micro"], "model is there already: write model=micro"),
    (["+trainer.max_stps=3"], "unknown key 'trainer.max_stps': did you mean trainer.max_steps?"),
    (["+loader.kinds.pages=1"], "unknown key 'loader.kinds.pages': did you mean loader.kinds.page?"),
    (["~loader.rows"], "loader.rows cannot be left out"),
    (["tokenizer.network.channels=[a,b]"], "takes a list, of which each is a whole number"),
    (["trainer.max_steps=0"], "trainer.max_steps=0 must be 1 or more"),
    (["tokenizer.trainer.batch_size=0"], "tokenizer.trainer.batch_size=0 must be 1 or more"),
    (["optimizer.learning_rate=-1"], "optimizer.learning_rate=-1 must be 0 or more"),
    (["optimizer.learning_rate=nan"], "optimizer.learning_rate=nan must be 0 or more"),
    (["optimizer.learning_rate=inf"], "optimizer.learning_rate=inf must be 0 or more"),
    (["sampling.image.guidance=inf"], "sampling.image.guidance=inf must be a finite number"),
    (["loss.weights.image=-0.5"], "loss.weights.image=-0.5 must be 0 or more"),
    (["loader.kinds={page:-1}"], "loader.kinds.page=-1 must be 0 or more"),
    (["tokenizer.network.channels=[0,64]"], "tokenizer.network.channels=[0,64] must be 1 or more"),
    (["tokenizer.text.character_coverage=1.5"], "character_coverage=1.5 must be from 0.98 to 1"),
    (["tokenizer=movqgan", "tokenizer.discriminator.layers=0"], "tokenizer.discriminator.layers=0 must be 1 or more"),
    (["sampling.image.picture_guidance=inf"], "sampling.image.picture_guidance=inf must be a finite number"),
    (["sampling.image.min_p=2"], "sampling.image.min_p=2 must be from 0 to 1"),
    (["sampling.image.repetition_penalty=0"], "sampling.image.repetition_penalty=0 must be above 0"),
    (["sampling.image.top_p=2"], "sampling.image.top_p=2 must be above 0 and at most 1"),
    (
        ["tokenizer.discriminator={layers:3}"],
        "tokenizer.discriminator takes channels, layers, learning_rate, lecam, weight",
    ),
    (["tokenizer=movqgan", "tokenizer.discriminator.guard_ratio=1"], "discriminator.guard_ratio=1 must be above 1"),
    (["tokenizer=movqgan", "tokenizer.discriminator.max_weight=0"], "discriminator.max_weight=0 must be above 0"),
    (["tokenizer=movqgan", "tokenizer.discriminator.lecam=null"], "tokenizer.discriminator.lecam cannot be null"),
    (["tokenizer.quantizer.dead_code_threshold=2"], "dead_code_threshold=2 must be at least 0 and less than 1"),
    (["tokenizer.loss.perceptual=-1"], "tokenizer.loss.perceptual=-1 must be 0 or more"),
    (["threads=0"], "threads=0 must be 1 or more"),
    (["threads=many"], "threads=many must be 1 or more"),
    (["seed=-1"], "seed=-1 must be from 0 to 4294967295"),
    (["data.name=a/b"], "data.name=a/b names a folder"),
    (["tokenizer.name=''"], "tokenizer.name= names a folder"),
]


@pytest.mark.parametrize(
    ("overrides", "message"), FAULTS, ids=lambda value: value[0] if isinstance(value, list) else ""
)
def test_faults_are_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is looked at below
        compose_config(overrides)
    assert any(part in str(caught.value) for part in message.split("|")), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_number_has_limits(option: str) -> None:
    known = {name for _, _, names in LIMITS for name in names.split()}
    assert len(known) == sum(len(names.split()) for _, _, names in LIMITS), "one limit a name"
    config = OmegaConf.to_container(compose_config([option, *NEEDED.get(option, [])]), resolve=True)
    left: list[Any] = [config]
    while left:
        for name, value in left.pop().items():
            if isinstance(value, dict):
                left.append(value)
            first = value[0] if isinstance(value, list) and value else value
            if isinstance(first, int | float) and not isinstance(first, bool):
                assert name in known


def test_kinds_and_weights_can_be_left_out() -> None:
    config = compose_config(["~loader.kinds.text", "~loss.weights.text", "~model.head_dim"])
    assert set(config.loader.kinds) == {"words_to_picture", "picture_to_words", "page"}
    assert list(config.loss.weights) == ["image"]
    assert "head_dim" not in config.model


def test_a_multirun_is_every_combination_in_order() -> None:
    combinations = compose_each(["model=nano,micro", "seed=range(2)", "threads=1"], multirun=True)
    assert [overrides[:2] for overrides, _ in combinations] == [
        ["model=nano", "seed=0"],
        ["model=nano", "seed=1"],
        ["model=micro", "seed=0"],
        ["model=micro", "seed=1"],
    ]
    assert [(config.model_name, config.seed, config.threads) for _, config in combinations] == [
        ("nano", 0, 1),
        ("nano", 1, 1),
        ("micro", 0, 1),
        ("micro", 1, 1),
    ]


def test_a_multirun_with_one_faulty_value_yields_nothing() -> None:
    with pytest.raises(ValueError, match="unknown model 'big'"):
        compose_each(["model=nano,big"], multirun=True)
