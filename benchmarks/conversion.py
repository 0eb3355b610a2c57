"""Memory of `omnigram import`: a synthetic Chameleon in, as transformers' shards and as Meta's parts, and out again.

The checkpoint has the published widths in bfloat16, and as many layers as fill the gigabytes asked for. Each conversion
runs in a process of its own, and what counts is its peak of resident memory (VmHWM, mapped pages included) above that
of a process with the same imports. Exits with 1 if that is 2 GB or more. The peer, where asked for, is what one writes
first: transformers' `from_pretrained` and `save_pretrained`.

Needs room for the checkpoint twice, and Linux.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from timing.rounds import command
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE
from torch import Tensor
from transformers import ChameleonConfig

from omnigram.model.configuration import OmnigramConfig
from omnigram.model.conversion.family import PREPROCESSOR
from omnigram.model.conversion.meta import MetaModel
from omnigram.model.conversion.safetensors_files import Planned, write_folder
from omnigram.model.conversion.sources import decoder_tensors
from omnigram.tokenizers.preprocessing import CHAMELEON_TRANSFORMERS
from omnigram.tokenizers.preprocessor_config import write_preprocessor_config
from omnigram.tokenizers.published import CHAMELEON_NAMES, chameleon_code_name
from omnigram.tokenizers.vqgan import TAMING, VQGAN, VQGANConfig

LIMIT = 2e9
PARTS = ("consolidated.00.pth", "consolidated.01.pth")
LETTERS = [chr(code) for code in range(ord(" "), ord("~") + 1)]
MEASURED = """
import re, sys
{work}
status = open("/proc/self/status").read()
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024)
"""
IMPORTS = "from omnigram.model.conversion import export_checkpoint, import_checkpoint"
PEER = (
    "import torch; from transformers import ChameleonForConditionalGeneration as C; "
    "C.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])"
)


def made_config(gigabytes: float) -> OmnigramConfig:
    """Chameleon 7B but for the number of layers; below 2 GB narrower, so that there still are several."""
    width, intermediate, vocab = (4096, 11008, 65536) if gigabytes >= 2 else (512, 1536, 9000)
    layer = 4 * width**2 + 3 * width * intermediate
    rest = 2 * vocab * width
    return OmnigramConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=intermediate,
        num_hidden_layers=max(1, round((gigabytes * 1e9 / 2 - rest) / layer + 0.5)),
        num_attention_heads=width // 128,
        max_position_embeddings=4096,
        qk_norm="layer",
        qk_norm_per_head=True,
    )


def made_names(size: int) -> dict[str, int]:
    """Chameleon's tokens, as many as the model has ids."""
    codes = [chameleon_code_name(code) for code in range(8192)]
    names = ["<s>", "<pad>", "</s>", "unused", *codes, "<eoss>", "<racm3:break>", *LETTERS]
    names += ["<reserved08706>", CHAMELEON_NAMES["image"]]
    return {name: id_ for id_, name in enumerate([*names, *(f"<filler{n}>" for n in range(size - len(names)))])}


def save_tokenizer(path: Path, names: dict[str, int]) -> None:
    tokenizer = Tokenizer(BPE(dict(names), []))
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in list(names)[:3]])
    tokenizer.save(str(path))


class Noise:
    """Tensors of any size that take no memory: all map the beginning of one file."""

    def __init__(self, path: Path, largest: int) -> None:
        self.path, self.size = path, largest
        with open(path, "wb") as file:
            block = torch.randn(2**20, generator=torch.Generator().manual_seed(0)).bfloat16().view(torch.uint8).numpy()
            for _ in range(-(-largest // len(block))):
                file.write(block.data)

    def tensor(self, shape: Sequence[int], dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.from_file(str(self.path), size=torch.Size(shape).numel(), dtype=dtype).view(*shape)


def image_tokenizer() -> VQGAN:
    with torch.device("meta"):
        return VQGAN(VQGANConfig())


def save_as_transformers(folder: Path, config: OmnigramConfig, noise: Noise) -> None:
    folder.mkdir()
    names = made_names(config.vocab_size)
    image = image_tokenizer()
    targets = decoder_tensors(config)
    targets |= {f"model.vqmodel.{n}": t for n, t in image.state_dict().items() if not n.startswith("decoder.")}
    tensors = [
        Planned(name, torch.bfloat16, tuple(tensor.shape), partial(noise.tensor, tensor.shape))
        for name, tensor in targets.items()
    ]
    write_folder(folder, tensors, lambda _: None, shard_bytes=2 * 10**9)
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    shape: dict[str, Any] = {key: getattr(config, key) for key in keys}
    theirs = ChameleonConfig(
        **shape,
        num_key_value_heads=config.num_key_value_heads,
        vq_config=image.config.to_hf(),
        vocabulary_map=names,
        dtype="bfloat16",
    )
    theirs.save_pretrained(folder)
    (folder / PREPROCESSOR).write_text(json.dumps(write_preprocessor_config(CHAMELEON_TRANSFORMERS)))
    save_tokenizer(folder / "tokenizer.json", names)


def save_as_meta(folder: Path, config: OmnigramConfig, noise: Noise) -> Path:
    model = folder / "models" / "7b"
    model.mkdir(parents=True)
    targets = decoder_tensors(config)
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    for rule in MetaModel(config, {}, PARTS).rules(list(targets)):
        shape = rule.operation.source_shape(tuple(targets[rule.target].shape), len(PARTS))
        for key in rule.sources:
            part, _, name = key.partition(":")
            parts[part][name] = noise.tensor(shape)
    for part, state in parts.items():
        torch.save(state, model / part)
    params = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "multiple_of": config.intermediate_size,
        "qk_normalization": True,
    }
    (model / "params.json").write_text(json.dumps({"model": params}))
    (model / "consolidate_params.json").write_text(json.dumps({"model_parallel_size": len(PARTS)}))
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    save_tokenizer(tokenizer / "text_tokenizer.json", made_names(config.vocab_size))
    image = image_tokenizer()
    state = {name: noise.tensor(tensor.shape, torch.float32) for name, tensor in image.state_dict().items()}
    torch.save({"state_dict": state}, tokenizer / "vqgan.ckpt")
    network = {theirs: getattr(image.config, ours) for ours, theirs in TAMING.items()}
    network = {key: list(value) if isinstance(value, tuple) else value for key, value in network.items()}
    settings = {"embed_dim": image.config.embed_dim, "n_embed": image.config.codebook_size, "ddconfig": network}
    (tokenizer / "vqgan.yaml").write_text(yaml.safe_dump({"model": {"params": settings}}))
    return model


def measure(work: str, *arguments: Path) -> tuple[float, float]:
    """Peak of resident bytes of a process that does the work, and its seconds from start to end."""
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURED.format(work=work), *map(str, arguments)],
        stdout=subprocess.PIPE,
        check=True,
    )
    return float(done.stdout), time.perf_counter() - begun


def num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def run(folder: Path, args: argparse.Namespace) -> float:
    """Prints a line for each conversion; the largest of our peaks above the interpreter."""
    config = made_config(args.gigabytes)
    noise = Noise(folder / "noise", max(2 * config.vocab_size * config.hidden_size, 4 * 2**22))
    idle, started = measure(IMPORTS)
    print(f"idle     {idle / 1e9:.3f} GB, {started:.1f} s: the interpreter with the same imports")
    peaks: list[float] = []

    def convert(name: str, what: str, work: str, source: Path, out: Path) -> None:
        peak, seconds = measure(work, source, out)
        size = num_bytes(source)
        print(
            f"{name}     {(peak - idle) / 1e9:.3f} GB above idle, {seconds:.1f} s, "
            f"{size / 1e9 / max(seconds - started, 1e-9):.2f} GB/s: {what}, {size / 1e9:.2f} GB",
            flush=True,
        )
        if name == "ours":
            peaks.append(peak - idle)

    taken_in = f"{IMPORTS}; import_checkpoint(sys.argv[1], sys.argv[2])"
    save_as_transformers(folder / "theirs", config, noise)
    convert("ours", "import of transformers' shards", taken_in, folder / "theirs", folder / "in")
    if args.peer:
        convert("peer", "from_pretrained and save_pretrained of the same", PEER, folder / "theirs", folder / "peer")
        shutil.rmtree(folder / "peer")
    shutil.rmtree(folder / "theirs")
    given_out = f'{IMPORTS}; export_checkpoint(sys.argv[1], "chameleon", sys.argv[2])'
    convert("ours", "export to transformers", given_out, folder / "in", folder / "out")
    for name in ("in", "out"):
        shutil.rmtree(folder / name)
    save_as_meta(folder / "meta", config, noise)
    convert("ours", f"import of Meta's {len(PARTS)} parts", taken_in, folder / "meta" / "models" / "7b", folder / "in")
    return max(peaks)


def main(arguments: Sequence[str] | None = None) -> None:
    made = argparse.ArgumentParser(
        prog="benchmarks/conversion.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--gigabytes", type=float, default=0.5, help="at least so large a checkpoint (default 0.5)")
    made.add_argument("--peer", action="store_true", help="measure transformers as well, which needs the memory")
    args = made.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="omnigram-conversion-") as name:
        folder = Path(name)
        free, needed = shutil.disk_usage(folder).free, (2 * args.gigabytes + 2) * 1e9
        if free < needed and args.gigabytes >= 1:
            sys.exit(f"{folder} has {free / 1e9:.0f} GB free, needed are {needed / 1e9:.0f}: set TMPDIR or --gigabytes")
        worst = run(folder, args)
    print(f"worst    {worst / 1e9:.3f} GB above idle, allowed: {LIMIT / 1e9:.0f} GB")
    print(f"repeat   {command(made.prog, args)}")
    if worst >= LIMIT:
        sys.exit("out of bounds")


if __name__ == "__main__":
    main()
