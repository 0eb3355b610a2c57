"""Pictures to codes and back by Emu3's image tokenizer: ours, against transformers' class on the same random weights.

transformers' Emu3VQVAE repeats a picture in time, encodes every frame and decodes every frame. A step encodes, or
decodes (`--what`), one batch of noise. Codes of both are compared, and what differs is counted; pictures agree to 1e-4.
Then how far a process of each grows by such a step.
"""

import argparse
from collections.abc import Callable, Sequence

import torch
from timing.memory import growths, in_own_process
from timing.rounds import in_turns, parser, positive, report
from torch import Tensor
from transformers import Emu3VQVAE, Emu3VQVAEConfig

from omnigram.tokenizers.movqgan import MoVQGAN, MoVQGANConfig
from omnigram.tokenizers.pixel_tokenizer import load_weights

Work = Callable[[Tensor], Tensor]


def options() -> argparse.ArgumentParser:
    made = parser("published_tokenizer.py", __doc__, rounds=5, steps=1)
    made.add_argument("--side", type=positive, default=128, metavar="N", help="pixels a side of a picture")
    made.add_argument("--batch", type=positive, default=4, metavar="N", help="pictures of a step")
    made.add_argument("--what", choices=("encode", "decode"), default="encode", help="pixels to codes, or back")
    made.add_argument("--width", type=positive, default=64, metavar="N", help="channels of the first level; Emu3: 256")
    return made


def both(args: argparse.Namespace) -> tuple[MoVQGAN, Emu3VQVAE]:
    """The same weights in both classes, with codes that lie among the vectors of noise."""
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    shape = MoVQGANConfig(base_channels=args.width)
    peer = Emu3VQVAE(Emu3VQVAEConfig(**shape.to_hf())).eval()
    with torch.no_grad():
        clip = noise(args)[:, None].expand(-1, shape.temporal_downsample_factor, -1, -1, -1)
        vectors = peer.quant_conv(peer.encoder(clip).transpose(1, 2)).movedim(1, -1).flatten(0, 3)
        chosen = vectors[torch.randint(len(vectors), (shape.codebook_size,))]
        peer.quantize.embedding.weight.copy_(chosen + 0.1 * vectors.std(0) * torch.randn_like(chosen))
    ours = MoVQGAN(shape).eval()
    load_weights(ours, peer.state_dict(), "peer")
    return ours, peer


def noise(args: argparse.Namespace) -> Tensor:
    return torch.rand(args.batch, 3, args.side, args.side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def works(args: argparse.Namespace) -> dict[str, dict[str, Work]]:
    """What each does: "encode" pixels to ids, "decode" ids to pixels."""
    ours, peer = both(args)
    sizes = torch.tensor([[args.side, args.side]] * args.batch)
    return {
        "ours": {"encode": ours.encode, "decode": ours.decode},
        "peer": {
            "encode": lambda pixels: torch.stack(list(peer.encode(pixels, sizes).image_tokens)),  # pyright: ignore
            "decode": lambda ids: peer.decode(ids).clamp(-1, 1),
        },
    }


@torch.no_grad()
def memory_of(who: str, args: argparse.Namespace) -> float:
    """MiB that a process with the weights grows by at its peak, in one step."""
    work, pixels = works(args), noise(args)
    given = pixels if args.what == "encode" else work[who]["encode"](pixels)
    [peak] = growths([lambda: work[who][args.what](given)])
    return peak or float("nan")


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    made = options()
    args = made.parse_args(arguments)
    work, pixels = works(args), noise(args)
    ids = {who: each["encode"](pixels) for who, each in work.items()}
    drawn = {who: each["decode"](ids["peer"]) for who, each in work.items()}
    differ = int((ids["ours"] != ids["peer"]).sum())
    most = float((drawn["ours"] - drawn["peer"]).abs().max())
    print(f"Emu3's tokenizer of {args.width} channels, {args.batch} pictures of {args.side} x {args.side} a step")
    print(f"equal    {differ} of {ids['ours'].numel():,} ids differ, pixels by {most:.1e} at most")
    assert most < 1e-4, "both have to draw the same"
    given = pixels if args.what == "encode" else ids["peer"]

    def step(who: str) -> float:
        work[who][args.what](given)
        return args.batch

    contestants = {who: lambda _, who=who: step(who) for who in work}
    words = {"ours": "omnigram's MoVQGAN", "peer": "transformers' Emu3VQVAE"}
    report(made.prog, args, in_turns(contestants, args.rounds, args.steps), "pictures", words)
    for who in work:
        print(f"memory   {in_own_process(memory_of, who, args):,.0f} MiB at its peak: {who}")


if __name__ == "__main__":
    main()
