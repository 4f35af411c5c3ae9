"""Tasks that a model of two layers learns from nothing within seconds, and what it knows, measured by itself.

Every stage's task is about letters: the alphabet (pt), reversing five of them (sft), or answering in vowels (the
others). Models start from random weights; their tokenizer has a token a letter. Nothing here is the trainer's:
artifacts are loaded and asked as users would.
"""

import json
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOWELS = "aeiou"
CONSONANTS = [letter for letter in LETTERS if letter not in VOWELS]
SPECIAL = ["<pad>", "<end>", ">"]
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'user' %}{{ message.content }}"
    "{% else %}>{{ message.content }}<end>{% endif %}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)
ANSWER = 8
"""Letters of an answer in vowels."""


def tokenizer() -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = {token: number for number, token in enumerate([*SPECIAL, *LETTERS])}
    made = Tokenizer(models.WordLevel(known, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.decoder = decoders.Fuse()
    fast: Any = PreTrainedTokenizerFast
    tokens = fast(tokenizer_object=made, eos_token="<end>", pad_token="<pad>")
    tokens.chat_template = TEMPLATE
    return tokens


def save_model(folder: Path, seed: int) -> Path:
    """Two layers, random weights: it knows nothing."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokens = tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder


def words(seed: int, count: int, length: int = 5, letters: Sequence[str] = LETTERS) -> list[str]:
    """Different rows; those of two seeds may overlap."""
    chance, found = random.Random(seed), dict[str, None]()
    while len(found) < count:
        found["".join(chance.choices(letters, k=length))] = None
    return list(found)


def reversals(asked: list[str]) -> list[dict[str, Any]]:
    return [{"messages": [said("user", word), said("assistant", word[::-1])]} for word in asked]


def documents(seed: int, count: int) -> list[dict[str, Any]]:
    """Text with a rule: after each letter comes the next of the alphabet, three times of four."""
    chance, made = random.Random(seed), []
    for _ in range(count):
        text = chance.choice(LETTERS)
        while len(text) < 24:
            following = LETTERS[(LETTERS.index(text[-1]) + 1) % len(LETTERS)]
            text += following if chance.random() < 0.75 else chance.choice(LETTERS)
        made.append({"text": text})
    return made


def vowels(answer: str) -> float:
    """The share of vowels: what answers are worth. An answer that is no letters is worth nothing."""
    return sum(letter in VOWELS for letter in answer) / max(len(answer), 1)


def answer(chance: random.Random, share: float) -> str:
    return "".join(chance.choice(VOWELS if chance.random() < share else CONSONANTS) for _ in range(ANSWER))


def pairs(seed: int, count: int) -> list[dict[str, Any]]:
    """The answer with more vowels is better."""
    chance, made = random.Random(seed), []
    for word in words(seed, count):
        better, worse = answer(chance, 0.6), answer(chance, 0.2)
        if vowels(better) == vowels(worse):
            better = chance.choice(VOWELS) * ANSWER
        if vowels(better) < vowels(worse):
            better, worse = worse, better
        made.append(
            {
                "prompt": [said("user", word)],
                "chosen": [said("assistant", better)],
                "rejected": [said("assistant", worse)],
            }
        )
    return made


def labelled(seed: int, count: int) -> list[dict[str, Any]]:
    """One answer of each pair, wanted or not."""
    return [
        {
            "prompt": pair["prompt"],
            "completion": pair["chosen" if number % 2 else "rejected"],
            "label": bool(number % 2),
        }
        for number, pair in enumerate(pairs(seed, count))
    ]


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@contextmanager
def reward_service() -> Iterator[str]:
    """Its address: it scores texts by the share of vowels in what was answered."""

    class Service(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            scores = [vowels(text.partition(">")[2].replace("<end>", "").strip()) for text in asked["messages"]]
            body = json.dumps({"scores": scores}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/score"
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


def load(folder: Path, *, scores: bool = False) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind: Any = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    return kind.from_pretrained(folder).eval()


def answers(model: Any, asked: list[str], length: int) -> list[str]:
    """Greedy answers to words that are equally long."""
    import torch

    tokens = tokenizer()
    prompts = torch.tensor(
        [tokens.apply_chat_template([said("user", w)], add_generation_prompt=True)["input_ids"] for w in asked]
    )
    with torch.no_grad():
        made = model.generate(prompts, max_new_tokens=length, do_sample=False, use_cache=True)
    return [tokens.decode(row[prompts.shape[1] :], skip_special_tokens=True) for row in made]


def exact(model: Any, asked: list[str]) -> float:
    """Share of words that it reverses."""
    right = [made == word[::-1] for made, word in zip(answers(model, asked, 6), asked, strict=True)]
    return sum(right) / len(right)


def rendered(rows: list[dict[str, Any]], which: str) -> Any:
    """Prompts with one of their answers, which are all of one length; how long the prompts are."""
    import torch

    tokens = tokenizer()
    whole = [tokens.apply_chat_template(row["prompt"] + row[which])["input_ids"] for row in rows]
    return torch.tensor(whole)


def preferences(model: Any, base: Any, rows: list[dict[str, Any]]) -> float:
    """Share of pairs whose better answer has become likelier than it was, more than the worse answer has."""
    import torch

    with torch.no_grad():
        gains = [logprobs(model, rendered(rows, which)) - logprobs(base, rendered(rows, which)) for which in ANSWERS]
    return float((gains[0] > gains[1]).float().mean())


ANSWERS = ("chosen", "rejected")


def logprobs(model: Any, ids: Any) -> Any:
    """The last tokens of each row, which are the answers."""
    scores = model(ids, use_cache=False).logits[:, :-1].log_softmax(-1)
    return scores.gather(-1, ids[:, 1:, None])[:, -(ANSWER + 1) :, 0].sum(1)


def accuracy(model: Any, rows: list[dict[str, Any]]) -> float:
    """Share of pairs whose better answer a reward model scores higher."""
    import torch

    with torch.no_grad():
        better, worse = (model(rendered(rows, which), use_cache=False).logits[:, 0] for which in ANSWERS)
    return float((better > worse).float().mean())


def perplexity(model: Any, rows: list[dict[str, Any]]) -> float:
    import torch

    ids = torch.tensor([tokenizer()(row["text"])["input_ids"] for row in rows])
    with torch.no_grad():
        scores = model(ids, use_cache=False).logits[:, :-1].log_softmax(-1)
    return float(torch.exp(-scores.gather(-1, ids[:, 1:, None]).mean()))
