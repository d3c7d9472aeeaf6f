#!/usr/bin/env python3
"""Sampling: this project against `transformers.generate`, one after the other in one run.

    python benches/pytorch/sampling.py BINARY        # the benchmark `sampling`, built with --features tch

A model of SmolLM2's shape with 10 layers and drawn weights (the time does not depend on them), prompts of 64 tokens, 128
new tokens, temperature 1, nothing ends early. A round is one batch of theirs, loaded and warm, and four of ours, with the
weights' rearrangement. Writes results/bench/sampling.csv: medians over interleaved rounds.
"""
import statistics
import subprocess
import sys
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from report import backends_of, write

PROMPT, NEW, ROUNDS = 64, 128, 3


def model(dtype):
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=10, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=2048, rope_theta=100000.0, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )
    torch.manual_seed(1)
    return LlamaForCausalLM(config).to(dtype).eval()


@torch.no_grad()
def theirs(m, batch):
    ids = torch.randint(0, 49152, (batch, PROMPT), generator=torch.Generator().manual_seed(2))
    begun = time.perf_counter()
    out = m.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, top_p=1.0, max_new_tokens=NEW)
    assert out.shape[1] == PROMPT + NEW
    return batch * NEW / (time.perf_counter() - begun)


def ours(binary, *arguments):
    out = subprocess.run([binary, *map(str, arguments)], capture_output=True, text=True, check=True).stdout
    return float(out.rsplit(":", 1)[1].split()[0])


def main():
    binary = sys.argv[1]
    torch.set_num_threads(2)
    rows = []
    for precision, dtype in [("f32", torch.float32), ("bf16", torch.bfloat16)]:
        m = model(dtype)
        for batch in (16, 64):
            backends = backends_of(binary, precision)
            rates = {b: [] for b in ["transformers", *backends]}
            theirs(m, 2)
            for _ in range(ROUNDS):
                rates["transformers"].append(theirs(m, batch))
                for b in backends:
                    rates[b].append(ours(binary, batch, PROMPT, NEW, precision, b))
            base = statistics.median(rates["transformers"])
            for b in backends:
                rate = statistics.median(rates[b])
                rows.append([f"{b} {precision}, batch {batch}", f"{rate:.0f}", f"{base:.0f}", f"{rate / base:.2f}"])
                print(f"{rows[-1][0]:20} {rate:6.0f} tokens/s   transformers {base:6.0f}   {rate / base:.2f} times", flush=True)
                write("sampling", ["what", "ours_tokens_per_s", "torch_tokens_per_s", "times_as_fast"], rows)


main()
