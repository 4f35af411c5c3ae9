"""A tokenizer for tests of templates: byte-level BPE that splits like those of Llama 3 and Qwen, with the special
tokens of all families. It is trained here, and always the same.
"""

from functools import cache
from typing import Any

from finetune_trainer.data.templates import ChatTemplate

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = [
    *("<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]"),
    *("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    *("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
]
TEXTS = [
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    "### Instruction:\nuser\n\n### Response:\nassistant\n<think>\n\n</think>\n\nHuman: Assistant: System: model system",
    "What is the capital of France? The capital of France is Paris. And of Italy? Rome, of course.",
]


@cache
def _core() -> str:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(TEXTS, trainer)
    made: str = bpe.to_str()
    return made


def tokenizer(template: str | None, *, eos: str | None = "</s>") -> Any:
    """A new tokenizer with this chat template."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    fast: Any = PreTrainedTokenizerFast
    made = fast(tokenizer_object=Tokenizer.from_str(_core()), bos_token="<s>", eos_token=eos, pad_token="<|endoftext|>")
    made.chat_template = template
    return made


def tokenizer_of(template: ChatTemplate) -> Any:
    """The tokenizer of a template, without its types: transformers' methods return one of several types."""
    return template.tokenizer
