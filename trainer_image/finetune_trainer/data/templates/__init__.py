"""Conversations -> text, and which parts of it are trained, by the chat template of the tokenizer.

`named` and `marks` find templates, `render` runs one, `turns` finds the answer to one prompt, `template` puts together
the rows of a conversation. Token ids come in ``data.tokenize``.
"""

from finetune_trainer.data.templates.template import Template

__all__ = ["Template"]
