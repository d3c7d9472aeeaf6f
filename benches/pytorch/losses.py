#!/usr/bin/env python3
"""Forward and backward of each divergence: this project's row kernel against PyTorch, one after the other in one run.

    make bench PYTHON=/path/to/python       # a Python with torch; matplotlib is not needed

The PyTorch side is written from the formulas as the released losses compute them: eager, f32, mean over the rows, both
softmaxes materialised; and the same through torch.compile, where that finds a C++ compiler. Writes
results/bench/losses.csv: milliseconds (medians over interleaved rounds) and ratios; and results/bench/growth.csv: the time
of the pass that the losses are measured in, and how well the alpha-beta divergence's time is a line in rows and vocabulary.
"""
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import torch
import torch.nn.functional as F

from report import write

ROWS, VOCAB, ROUNDS = 1024, 50257, 3


def kl(p, lp, lq):
    return (p * (lp - lq)).sum(-1)


def fkld(z, t):
    return -(F.softmax(t, -1) * F.log_softmax(z, -1)).sum(-1)


def rkld(z, t):
    return kl(F.softmax(z, -1), F.log_softmax(z, -1), F.log_softmax(t, -1))


def wsd(z, t):
    return 0.5 * fkld(z, t) + 0.5 * rkld(z, t)


def bdkd(z, t):
    p, q = F.softmax(t, -1), F.softmax(z, -1)
    entropy = lambda x: -(x * torch.log(x + 1e-9)).sum(-1)
    flatter = (entropy(q) > entropy(p)).detach()
    one, three = torch.tensor(1.0), torch.tensor(3.0)
    return torch.where(flatter, one, three) * fkld(z, t) + torch.where(flatter, three, one) * rkld(z, t)


def jensen(z, t, lam=0.1):
    p, q = F.softmax(t, -1), F.softmax(z, -1)
    lm = torch.log((1 - lam) * p + lam * q)
    return lam * kl(q, F.log_softmax(z, -1), lm) + (1 - lam) * kl(p, F.log_softmax(t, -1), lm)


def akl(z, t, mu=0.5):
    p, q = F.softmax(t, -1), F.softmax(z, -1)
    order = torch.argsort(p, descending=True, dim=-1)
    mass = torch.cumsum(torch.gather(p, -1, order), -1)
    head = mass < mu
    head[:, 0] = True
    gap = torch.gather((p - q.detach()).abs(), -1, order)
    h, l = (gap * head).sum(-1), (gap * ~head).sum(-1)
    return h / (h + l) * fkld(z, t) + l / (h + l) * rkld(z, t)


def ab(z, t, alpha=0.2, beta=0.7):
    p, q, s = F.softmax(t, -1), F.softmax(z, -1), alpha + beta
    terms = p.pow(alpha) * q.pow(beta) - alpha / s * p.pow(s) - beta / s * q.pow(s)
    return -terms.sum(-1) / (alpha * beta)


def alphanet(z, t):
    a, b = ab(z, t, 0.2, 0.8), ab(z, t, 0.9, 0.1)
    return torch.where(a.sum() >= b.sum(), a, b)


def skew_fkl(z, t, lam=0.1):
    p, q = F.softmax(t, -1), F.softmax(z, -1)
    return -(p * torch.log(lam * p + (1 - lam) * q)).sum(-1)


def skew_rkl(z, t, lam=0.1):
    p, q = F.softmax(t, -1), F.softmax(z, -1)
    return kl(q, F.log_softmax(z, -1), torch.log((1 - lam) * p + lam * q))


def tvd(z, t):
    return 0.5 * (F.softmax(t, -1) - F.softmax(z, -1)).abs().sum(-1)


LOSSES = [fkld, rkld, wsd, bdkd, jensen, akl, alphanet, ab, skew_fkl, skew_rkl, tvd]


def torch_ms(loss, z, t):
    begun = time.perf_counter()
    leaf = z.detach().requires_grad_()
    loss(leaf, t).mean().backward()
    return 1e3 * (time.perf_counter() - begun)


def compile_loss(loss, z, t):
    try:
        compiled = torch.compile(loss)
        torch_ms(compiled, z, t)
        return compiled
    except Exception as error:  # whatever keeps inductor from working here
        print(f"{loss.__name__}: torch.compile failed ({type(error).__name__})", file=sys.stderr)
        return None


def ours_ms(binary, *ids):
    """Medians of benchmarks (ab/1024x50257) from one run, as criterion writes them."""
    with tempfile.TemporaryDirectory() as home:
        short = ["--warm-up-time", "0.3", "--measurement-time", "1"]
        subprocess.run([binary, "--bench", *short, f"^({'|'.join(ids)})$"], env={**os.environ, "CRITERION_HOME": home},
                       capture_output=True, check=True)
        estimates = [json.loads(pathlib.Path(home, id, "new/estimates.json").read_text()) for id in ids]
    return [e["median"]["point_estimate"] / 1e6 for e in estimates]


def r_squared(x, y):
    mx, my = statistics.mean(x), statistics.mean(y)
    sxy = sum((a - mx) * (b - my) for a, b in zip(x, y))
    return sxy ** 2 / (sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y))


def main():
    binary = sys.argv[1]
    torch.set_num_threads(2)
    generator = torch.Generator().manual_seed(1)
    z, t = (10 * torch.rand(ROWS, VOCAB, generator=generator) - 5 for _ in range(2))
    rows, passes = [], []
    for loss in LOSSES:
        name = loss.__name__
        compiled = compile_loss(loss, z, t)
        torch_ms(loss, z, t)
        theirs, ours, floors, compiled_ms = [], [], [], []
        for _ in range(ROUNDS):
            floor, ms = ours_ms(binary, f"pass/{ROWS}x{VOCAB}", f"{name}/{ROWS}x{VOCAB}")
            floors.append(floor), ours.append(ms)
            theirs.append(torch_ms(loss, z, t))
            if compiled:
                compiled_ms.append(torch_ms(compiled, z, t))
        passes += floors
        floor, a, b = map(statistics.median, (floors, ours, theirs))
        c = statistics.median(compiled_ms) if compiled_ms else None
        more = [f"{c:.1f}", f"{c / a:.1f}"] if c else ["", ""]
        rows.append([name, f"{a:.1f}", f"{a / floor:.1f}", f"{b:.1f}", f"{b / a:.1f}", *more])
        print(f"{name:10} {a:8.1f} ms {a / floor:5.1f} passes   torch {b:8.1f} ms {b / a:5.1f} times   "
              f"compiled {more[0] or '-':>8} ms {more[1] or '-':>5} times", flush=True)
    columns = ["what", "ours_ms", "passes", "torch_ms", "times_as_fast", "compiled_ms", "times_as_fast_as_compiled"]
    write("losses", columns, rows)
    write("growth", ["what", "r_squared", "ms"], growth(binary, passes))


def growth(binary, passes):
    """Times of passes (median, fastest, slowest), and of `ab` over four sizes in each direction with R^2 of a line."""
    of_passes = [("median", statistics.median(passes)), ("fastest", min(passes)), ("slowest", max(passes))]
    rows = [[f"pass, {what}", "", f"{ms:.1f}"] for what, ms in of_passes]
    for what, sizes in [("rows", [(n, VOCAB) for n in (256, 512, 1024, 2048)]),
                        ("vocabulary", [(ROWS, v) for v in (12_500, 25_000, 50_000, 100_000)])]:
        times = ours_ms(binary, *(f"ab/{n}x{v}" for n, v in sizes))
        rows += [[f"ab, {n} x {v}", "", f"{ms:.1f}"] for (n, v), ms in zip(sizes, times)]
        rows.append([f"ab in {what}", f"{r_squared([n * v for n, v in sizes], times):.4f}", ""])
    for what, fit, ms in rows:
        print(f"{what:20} {f'{ms:>8} ms' if ms else f'R^2 of a line {fit}'}")
    return rows


if __name__ == "__main__":
    main()
