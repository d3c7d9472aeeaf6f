#!/usr/bin/env python3
"""A distillation update: this project against two PyTorch steps, in one run.

    python benches/pytorch/step.py BINARY [BATCHES]    # the benchmark `step`, built with --features tch

Models have SmolLM2's shape (teacher 30 layers, student 10) and drawn weights; bf16 is autocast.

"good" is the step that a careful PyTorch engineer writes, on the random batches that the benchmark draws: padded to the
longest sequence of the batch, sdpa attention, the teacher's hidden states cached, head and loss of response rows only and
in chunks, fused AdamW. "released" is the step of the released code: padded to 512 tokens, the teacher runs, all logits of
both models are formed; its time is the same for any sequences. Both eager and by torch.compile.

Ours takes the same batches, packed. Every update of ours waits for a line, so that the updates of all candidates take
turns: batch after batch, each candidate once. "by 2" is the same update in micro-batches of 2 sequences, "ckpt" with
gradient checkpointing. "products" is the time of the update's matrix products at the rate of one product of 2048 x 2048
matrices in the same process.

Writes results/bench/step.csv, row by row: means over the batches, and our peak memory.
"""
import os
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from report import backends_of, write

WIDTH, CHUNK = 512, 256
COLUMNS = [
    "what", "ours_s_per_sample", "ours_peak_gib", "products_s_per_sample", "times_products",
    "good_s_per_sample", "times_as_fast_as_good", "good_compiled_s_per_sample", "times_as_fast_as_good_compiled",
    "released_s_per_sample", "times_as_fast_as_released", "released_compiled_s_per_sample",
    "times_as_fast_as_released_compiled",
]


def model(layers):
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=2048, rope_theta=100000.0, tie_word_embeddings=True,
    )
    torch.manual_seed(layers)
    return LlamaForCausalLM(config)


def autocast(precision):
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def alpha_beta(z, t):
    p, q = F.softmax(t, -1), F.softmax(z, -1)
    a, b, s = 0.2, 0.7, 0.9
    return -(p.pow(a) * q.pow(b) - a / s * p.pow(s) - b / s * q.pow(s)).sum(-1) / (a * b)


def finish(student, optimizer):
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


class Good:
    """Padded to the batch; head and loss of the response rows, a chunk at a time."""

    def __init__(self, student, teacher, optimizer, name, precision):
        self.student, self.optimizer, self.name, self.precision = student, optimizer, name, precision
        self.body, self.chunk_loss = student.model, self.chunk_loss_eager
        self.teacher_head = teacher.lm_head.weight.detach()

    def compile(self):
        self.body = torch.compile(self.student.model, dynamic=True)
        self.chunk_loss = torch.compile(self.chunk_loss_eager, dynamic=True)

    def chunk_loss_eager(self, hidden, head, labels, teacher_hidden, teacher_head):
        z = (hidden @ head.T).float()
        if self.name == "sft":
            return F.cross_entropy(z, labels, reduction="sum")
        with torch.no_grad():
            t = (teacher_hidden @ teacher_head.T).float()
        return alpha_beta(z, t).sum()

    def update(self, lengths):
        ids, at, labels = [], [], []
        width = max(p + r for p, r in lengths) - 1
        for row, (prompt, response) in enumerate(lengths):
            tokens = torch.arange(prompt + response) * 7919 % 49152
            ids.append(F.pad(tokens[:-1], (0, width - len(tokens) + 1)))
            at.append(row * width + torch.arange(prompt - 1, prompt + response - 1))
            labels.append(tokens[prompt:])
        ids, at, labels = torch.stack(ids), torch.cat(at), torch.cat(labels)
        cached = torch.randn(len(at), 576)  # as read from the cache
        begun = time.perf_counter()
        with autocast(self.precision):
            # Right padding needs no mask: attention is causal.
            hidden = self.body(input_ids=ids, use_cache=False).last_hidden_state
            rows = hidden.flatten(0, 1)[at]
        leaf = rows.detach().requires_grad_()
        for first in range(0, len(at), CHUNK):
            part = slice(first, first + CHUNK)
            with autocast(self.precision):
                loss = self.chunk_loss(
                    leaf[part], self.student.lm_head.weight, labels[part], cached[part], self.teacher_head)
            (loss / len(at)).backward()
        rows.backward(leaf.grad)
        finish(self.student, self.optimizer)
        return time.perf_counter() - begun


class Released:
    """Padded to 512 tokens, all logits of both models."""

    def __init__(self, student, teacher, optimizer, name, precision):
        self.student, self.teacher, self.optimizer = student, teacher, optimizer
        self.name, self.precision, self.loss = name, precision, self.loss_eager

    def compile(self):
        self.loss = torch.compile(self.loss_eager)

    def loss_eager(self, ids, mask, answer):
        z = self.student(ids, attention_mask=mask).logits.float()
        if self.name == "sft":
            loss = F.cross_entropy(z[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
            loss = F.pad(loss.view(len(ids), -1), (0, 1))
        else:
            with torch.no_grad():
                t = self.teacher(ids, attention_mask=mask).logits.float()
            loss = alpha_beta(z, t)
        return (loss * answer).sum() / answer.sum()

    def update(self, lengths):
        ids = torch.randint(0, 49152, (len(lengths), WIDTH), generator=torch.Generator().manual_seed(3))
        mask, answer = torch.zeros_like(ids), torch.zeros_like(ids)
        for row, (prompt, response) in enumerate(lengths):
            mask[row, : prompt + response] = 1
            answer[row, prompt - 1 : prompt + response - 1] = 1
        begun = time.perf_counter()
        with autocast(self.precision):
            loss = self.loss(ids, mask, answer)
        loss.backward()
        finish(self.student, self.optimizer)
        return time.perf_counter() - begun


class Ours:
    """The benchmark, an update for each line."""

    def __init__(self, binary, *arguments):
        self.process = subprocess.Popen(
            [binary, "wait", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.peak = self.products = 0.0
        if self.process.stdout.readline() != "ready\n":
            sys.exit(f"{binary} {' '.join(arguments)} did not start")

    def update(self, lengths):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        seconds, tokens = self.process.stdout.readline().split()
        # The same batch as for the others.
        assert int(tokens) == sum(p + r - 1 for p, r in lengths), (tokens, lengths)
        return float(seconds)

    def close(self):
        out, _ = self.process.communicate()
        words = out.split()
        self.peak, self.products = float(words[words.index("peak") + 1]), float(words[words.index("products") + 1])


def compiled(candidate, batch):
    """By torch.compile, warm; None where that does not work."""
    try:
        candidate.compile()
        candidate.update(batch)
        return candidate
    except Exception as error:  # whatever keeps inductor from working here
        print(f"torch.compile failed ({type(error).__name__})", file=sys.stderr)
        return None


def drawn(binary):
    """The batches that the benchmark draws: prompt and response tokens of each sequence."""
    out = subprocess.run([binary, "batches"], capture_output=True, text=True, check=True).stdout
    return [[tuple(map(int, s.split("+"))) for s in line.split()] for line in out.splitlines()]


def rate(dtype, n=512):
    """Floating-point operations a second of a product."""
    a = torch.randn(n, n).to(dtype)
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - begun)
    return 2 * n**3 / min(times)


def multiplies(precision):
    """Whether PyTorch does it at a speed that can be waited for: without AVX-512 bfloat16 is a hundred times slower."""
    if precision == "f32" or rate(torch.bfloat16) > 0.1 * rate(torch.float32):
        return True
    print(f"PyTorch makes {rate(torch.bfloat16) / 1e9:.1f} GFLOP/s in bfloat16 on this processor: not measured",
          file=sys.stderr)
    return False


def mean(candidate, batches):
    samples = sum(map(len, batches))
    return sum(candidate.update(batch) for batch in batches) / samples if candidate else None


def main():
    binary = os.path.abspath(sys.argv[1])
    first, *batches = drawn(binary)
    batches = batches[: int(sys.argv[2]) if len(sys.argv) > 2 else 4]
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    student, teacher = model(10), model(30).eval()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5, fused=True)
    rows = []
    for precision in ("f32", "bf16"):
        for name in ("sft", "ab"):
            what = (student, teacher, optimizer, name, precision)
            backends = backends_of(binary, precision)
            ways = {b: [b] for b in backends}
            if name == "ab":
                ways |= {f"{b} by 2": [b, "2"] for b in backends}
                ways |= {f"{b} ckpt": [b, "recompute"] for b in backends if precision == "bf16"}
            ours = {way: Ours(binary, name, precision, *arguments) for way, arguments in ways.items()}
            measured = multiplies(precision)
            good = {"good": Good(*what) if measured else None,
                    "good compiled": compiled(Good(*what), first) if measured else None}
            turns = {k: c for k, c in {**ours, **good}.items() if c}
            for way in ours.values():
                way.update(first)
            if good["good"]:
                good["good"].update(first)
            seconds = {k: 0.0 for k in turns}
            for batch in batches:
                for k, candidate in turns.items():
                    seconds[k] += candidate.update(batch)
            samples = sum(map(len, batches))
            theirs = [seconds[k] / samples if k in seconds else None for k in good]
            for way in ours.values():
                way.close()
            # Once: its time does not depend on the batch.
            theirs.append(mean(Released(*what) if measured else None, batches[:1]))
            theirs.append(mean(compiled(Released(*what), batches[0]) if measured else None, batches[:1]))
            for way, candidate in ours.items():
                a = seconds[way] / samples
                row = [f"{name} {precision} {way}", f"{a:.3f}", f"{candidate.peak:.2f}",
                       f"{candidate.products:.3f}", f"{a / candidate.products:.2f}"]
                for b in theirs:
                    row += [f"{b:.3f}", f"{b / a:.2f}"] if b else ["", ""]
                rows.append(row)
                print("  ".join(f"{c.replace('_s_per_sample', '')} {v}" for c, v in zip(COLUMNS, row)), flush=True)
                write("step", COLUMNS, rows)


main()
