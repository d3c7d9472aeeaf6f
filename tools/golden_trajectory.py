#!/usr/bin/env python3
"""Write a golden trajectory: updates of an alpha-beta distillation by PyTorch, from the batches of another one.

    pip install torch transformers
    python tools/golden_trajectory.py DIR RATE UPDATES > OUT/golden.json

DIR holds student/, teacher/ and golden.json, whose batches are taken in turn. AdamW without decay on biases and norms, a
cosine to 1e-7, gradients clipped to a norm of 1, alpha 0.2 and beta 0.7, the mean over response tokens.
"""
import json
import math
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM

folder, rate, updates = pathlib.Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
A, B, LAST = 0.2, 0.7, 1e-7
golden = json.load(open(folder / "golden.json"))
student, teacher = (AutoModelForCausalLM.from_pretrained(folder / who, dtype=torch.float32) for who in ("student", "teacher"))
teacher.eval()
student.train()
for module in student.modules():
    if isinstance(module, torch.nn.Dropout):
        module.p = 0.0
plain = [p for n, p in student.named_parameters() if p.ndim < 2]
decayed = [p for n, p in student.named_parameters() if p.ndim >= 2]
optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}], lr=rate)
batches = [golden["batches"][i % len(golden["batches"])] for i in range(updates)]
log = []
for step, batch in enumerate(batches):
    lr = LAST + 0.5 * (rate - LAST) * (1 + math.cos(math.pi * step / updates))
    for group in optimizer.param_groups:
        group["lr"] = lr
    ids, labels = torch.tensor(batch["input_ids"]), torch.tensor(batch["labels"])
    mask = torch.tensor(batch["attention_mask"]) if "attention_mask" in batch else None
    keep = labels != -100
    with torch.no_grad():
        p = torch.log_softmax(teacher(ids, attention_mask=mask).logits[keep], -1)
    q = torch.log_softmax(student(ids, attention_mask=mask).logits[keep], -1)
    s = A + B
    d = -((A * p + B * q).exp() - A / s * (s * p).exp() - B / s * (s * q).exp()).sum(-1) / (A * B)
    loss = d.mean()
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    log.append({"loss": float(loss.detach()), "grad_norm": float(norm), "lr": lr})
json.dump({**golden, "lr": rate, "schedule": f"cosine T_max {updates} eta_min {LAST}", "batches": batches, "log": log}, sys.stdout)
