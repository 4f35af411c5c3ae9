"""Conversations -> text, and the spans of it that are trained, by the chat template of the tokenizer.

From the bottom: `training_templates` and `named_templates` find templates, `render` runs a template, `tool_calls` finds
how a template writes calls, `tokenizer_template` binds a template to its tokenizer, `answer_spans` finds answers in
rendered text, and `chat_template` renders the rows of a conversation by the settings of the job. `data.tokenize` makes
token ids.
"""

from finetune_trainer.data.templates.chat_template import ChatTemplate

__all__ = ["ChatTemplate"]
