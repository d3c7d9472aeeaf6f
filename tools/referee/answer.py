#!/usr/bin/env python3
"""Answers of other libraries' losses to the referee's cases.

    abkd check emit cases
    python tools/referee/answer.py trl-gkd cases theirs.safetensors     # pip install torch safetensors trl
    abkd check judge cases theirs.safetensors

LOSS is one of
    torch-kl-div    torch.nn.functional.kl_div(log q, log p, reduction="batchmean", log_target=True)
    trl-gkd         TRL's GKDTrainer.generalized_jsd_loss with its defaults (beta 0.5, temperature 1)
    liger-jsd       Liger's LigerFusedLinearJSDLoss with its defaults, on the logits by an identity as its head
"""
import sys

import torch
from safetensors.torch import load_file, save_file


def torch_kl_div():
    def loss(student, teacher, labels):
        log = lambda x: torch.log_softmax(x, -1)
        return torch.nn.functional.kl_div(log(student), log(teacher), reduction="batchmean", log_target=True)

    return loss


def trl_gkd():
    try:
        from trl.experimental.gkd import GKDTrainer
    except ImportError:
        from trl import GKDTrainer
    return lambda student, teacher, labels: GKDTrainer.generalized_jsd_loss(student, teacher, labels)


def liger_jsd():
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    fused = LigerFusedLinearJSDLoss(compiled=False)

    def loss(student, teacher, labels):
        vocab = student.shape[-1]
        # Its product with an identity makes NaN of -inf, and a large identity takes gigabytes: not the loss's fault.
        if vocab > 1000 or not (torch.isfinite(student).all() and torch.isfinite(teacher).all()):
            return None
        head = torch.eye(vocab, dtype=student.dtype)
        flat = lambda x: x.reshape(-1, vocab)
        return fused(flat(student), head, flat(teacher), head, labels.reshape(-1))

    return loss


LOSSES = {"torch-kl-div": torch_kl_div, "trl-gkd": trl_gkd, "liger-jsd": liger_jsd}


def main():
    if len(sys.argv) != 4 or sys.argv[1] not in LOSSES:
        sys.exit(__doc__)
    loss = LOSSES[sys.argv[1]]()
    cases = load_file(f"{sys.argv[2]}/cases.safetensors")
    answers = {}
    for name in (key.removesuffix(".labels") for key in cases if key.endswith(".labels")):
        student = cases[f"{name}.student"].requires_grad_()
        value = loss(student, cases[f"{name}.teacher"], cases[f"{name}.labels"])
        if value is None:
            continue
        value.backward()
        answers[f"{name}.loss"] = value.detach().double()
        answers[f"{name}.grad"] = student.grad.contiguous()
    save_file(answers, sys.argv[3])


if __name__ == "__main__":
    main()
