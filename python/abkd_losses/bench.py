#!/usr/bin/env python3
"""Forward and backward of each divergence through this package, beside eager PyTorch and torch.compile, in one run.

    python bench.py [ROWS VOCAB]     # 1024 50257 without them

The PyTorch side is that of benches/pytorch/losses.py. Writes results/bench/python.csv: milliseconds, medians over rounds that
take turns, and how many times as fast this package is.
"""
import pathlib
import statistics
import sys
import time

import torch

import abkd_losses

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benches/pytorch"))
from losses import LOSSES, compile_loss, torch_ms  # noqa: E402
from report import write  # noqa: E402

ROUNDS = 5


def ours_ms(name, z, t):
    begun = time.perf_counter()
    leaf = z.detach().requires_grad_()
    abkd_losses.divergence(name, student=leaf, teacher=t).mean().backward()
    return 1e3 * (time.perf_counter() - begun)


def main():
    rows, vocab = map(int, sys.argv[1:3] or (1024, 50257))
    generator = torch.Generator().manual_seed(1)
    z, t = (10 * torch.rand(rows, vocab, generator=generator) - 5 for _ in range(2))
    lines = []
    for loss in LOSSES:
        sides = {
            "ours_ms": lambda: ours_ms(loss.__name__, z, t),
            "eager_ms": lambda: torch_ms(loss, z, t),
        }
        compiled = compile_loss(loss, z, t)
        if compiled:
            sides["compiled_ms"] = lambda: torch_ms(compiled, z, t)
        for run in sides.values():
            run()
        taken = {side: [] for side in sides}
        for _ in range(ROUNDS):
            for side, run in sides.items():
                taken[side].append(run())
        ms = {side: statistics.median(all) for side, all in taken.items()}
        line = [loss.__name__]
        for side in ("ours_ms", "eager_ms", "compiled_ms"):
            line.append(f"{ms[side]:.1f}" if side in ms else "")
        for side in ("eager_ms", "compiled_ms"):
            line.append(f"{ms[side] / ms['ours_ms']:.1f}" if side in ms else "")
        print(*line, sep="\t", flush=True)
        lines.append(line)
    write("python", ["loss", "ours_ms", "eager_ms", "compiled_ms", "times_eager", "times_compiled"], lines)


if __name__ == "__main__":
    main()
