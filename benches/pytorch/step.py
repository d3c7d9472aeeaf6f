#!/usr/bin/env python3
"""A distillation update: this project against a PyTorch step as the released code takes it, in one run.

    python benches/pytorch/step.py BINARY        # the benchmark `step`, built with --features tch

Models have SmolLM2's shape (teacher 30 layers, student 10) and drawn weights. The PyTorch step pads to 512 tokens, so that
its time is the same for any lengths, runs the teacher in every step and forms all logits of both models, eager and through
torch.compile (models and loss in one); bf16 is autocast.
Ours takes the benchmark's 40 sequences in batches of 8, sorted into buckets by length as in training, pads to the longest
sequence of a batch, reads the teacher's cached rows and forms the logits of response rows only; "by 2" is the same update
in micro-batches of 2 sequences, "ckpt" with gradient checkpointing. Writes results/bench/step.csv: medians over interleaved
rounds, and the largest of our peaks.
"""
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from report import backends_of, write

# Tokens of prompt and response of 8 of the benchmark's 40 sequences.
LENGTHS = [(47, 70), (43, 112), (212, 251), (36, 54), (256, 27), (41, 9), (41, 290), (72, 37)]
WIDTH, ROUNDS = 512, 3
COLUMNS = ["what", "ours_s_per_sample", "torch_s_per_sample", "times_as_fast", "ours_peak_gib", "compiled_s_per_sample",
           "times_as_fast_as_compiled"]


def model(layers):
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=2048, rope_theta=100000.0, tie_word_embeddings=True,
    )
    torch.manual_seed(layers)
    return LlamaForCausalLM(config)


def alpha_beta(z, t):
    p, q = F.softmax(t, -1), F.softmax(z, -1)
    a, b, s = 0.2, 0.7, 0.9
    return -(p.pow(a) * q.pow(b) - a / s * p.pow(s) - b / s * q.pow(s)).sum(-1) / (a * b)


def loss_of(name, student, teacher, ids, mask, answer):
    z = student(ids, attention_mask=mask).logits.float()
    if name == "sft":
        loss = F.cross_entropy(z[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(LENGTHS), -1)
        loss = F.pad(loss, (0, 1))
    else:
        with torch.no_grad():
            t = teacher(ids, attention_mask=mask).logits.float()
        loss = alpha_beta(z, t)
    return (loss * answer).sum() / answer.sum()


def theirs(loss_of, student, teacher, optimizer, name, precision):
    ids = torch.randint(0, 49152, (len(LENGTHS), WIDTH), generator=torch.Generator().manual_seed(3))
    mask = torch.zeros_like(ids)
    answer = torch.zeros_like(ids)
    for row, (prompt, response) in enumerate(LENGTHS):
        mask[row, : prompt + response] = 1
        answer[row, prompt - 1 : prompt + response - 1] = 1
    begun = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = loss_of(name, student, teacher, ids, mask, answer)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return (time.perf_counter() - begun) / len(LENGTHS)


def compiled_loss(*arguments):
    """The loss of this update by torch.compile, warm; None where that does not work."""
    try:
        compiled = torch.compile(loss_of)
        theirs(compiled, *arguments)
        return compiled
    except Exception as error:  # whatever keeps inductor from working here
        print(f"torch.compile failed ({type(error).__name__})", file=sys.stderr)
        return None


def ours(binary, *arguments):
    out = subprocess.run([binary, *arguments], capture_output=True, text=True, check=True).stdout.split()
    return float(out[0]), float(out[3])


def main():
    binary = sys.argv[1]
    torch.set_num_threads(2)
    student, teacher = model(10), model(30).eval()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5)
    rows = []
    for precision in ("f32", "bf16"):
        for name in ("sft", "ab"):
            backends = backends_of(binary, precision)
            ways = {b: [b] for b in backends}
            if name == "ab":
                ways |= {f"{b} by 2": [b, "2"] for b in backends}
            ways |= {f"{b} ckpt": [b, "recompute"] for b in backends if precision == "bf16"}
            update = (student, teacher, optimizer, name, precision)
            base, compiled_base, rates, peaks = [], [], {w: [] for w in ways}, {w: [] for w in ways}
            compiled = compiled_loss(*update)
            theirs(loss_of, *update)
            for _ in range(ROUNDS):
                base.append(theirs(loss_of, *update))
                if compiled:
                    compiled_base.append(theirs(compiled, *update))
                for way, arguments in ways.items():
                    seconds, peak = ours(binary, name, precision, *arguments)
                    rates[way].append(seconds)
                    peaks[way].append(peak)
            b = statistics.median(base)
            c = statistics.median(compiled_base) if compiled else None
            for way in ways:
                a, peak = statistics.median(rates[way]), max(peaks[way])
                more = [f"{c:.3f}", f"{c / a:.1f}"] if c else ["", ""]
                rows.append([f"{name} {precision} {way}", f"{a:.3f}", f"{b:.3f}", f"{b / a:.1f}", f"{peak:.2f}", *more])
                print(f"{rows[-1][0]:30} {a:.3f} s/sample, {peak:.2f} GiB   torch {b:.3f}   {b / a:.1f} times   "
                      f"compiled {more[0] or '-':>5} {more[1] or '-':>5} times", flush=True)
                write("step", COLUMNS, rows)


main()
