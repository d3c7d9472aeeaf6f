#!/usr/bin/env python3
"""Write DIR/golden.json: logits and greedy tokens of the checkpoint in DIR, by PyTorch and transformers.

`abkd verify model DIR` then compares this project's numbers with them. Works for a checkpoint of any
architecture that is built, the students in runs/ included.

    pip install torch transformers
    python tools/golden_from_transformers.py DIR && cargo run --release --bin abkd -- verify model DIR

With `--new MODEL_TYPE [KEY=VALUE ...]` a tiny checkpoint with drawn weights is written to DIR first.
"""
import json
import pathlib
import sys

import torch
from transformers import AutoConfig, AutoModelForCausalLM

folder = pathlib.Path(sys.argv[1])
if sys.argv[2:3] == ["--new"]:
    keys = dict(vocab_size=97, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2, bos_token_id=96, eos_token_id=96)
    keys |= {key: json.loads(value) for key, value in (pair.split("=") for pair in sys.argv[4:])}
    torch.manual_seed(1)
    drawn = AutoModelForCausalLM.from_config(AutoConfig.for_model(sys.argv[3], **keys))
    for name, parameter in drawn.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    drawn.save_pretrained(folder)
model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
assert not report["missing_keys"] and not report["unexpected_keys"], report
model.eval()
torch.manual_seed(0)
vocab, eos = model.config.vocab_size, model.config.eos_token_id or 0
ids = torch.randint(1, vocab, (2, 9))
mask = torch.ones_like(ids)
mask[1, 6:] = 0
prompts, prompt_mask = ids[:, :5].clone(), torch.ones(2, 5, dtype=torch.long)
prompts[1, :2], prompt_mask[1, :2] = eos, 0
with torch.no_grad():
    logits = model(ids, attention_mask=mask).logits
    answers = model.generate(
        prompts, attention_mask=prompt_mask, max_new_tokens=12, do_sample=False, pad_token_id=eos, eos_token_id=eos
    )[:, 5:]
golden = {
    "input_ids": ids.tolist(),
    "attention_mask": mask.tolist(),
    "logits": logits.flatten().tolist(),
    "prompt_ids": prompts.tolist(),
    "prompt_mask": prompt_mask.tolist(),
    "greedy": answers.tolist(),
    "pad_and_eos": eos,
}
(folder / "golden.json").write_text(json.dumps(golden))
print(f"{folder / 'golden.json'}: {logits.numel()} logits, {answers.numel()} tokens")
