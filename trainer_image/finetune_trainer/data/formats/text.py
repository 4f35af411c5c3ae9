"""Format text: documents, without a template."""

from finetune_trainer.data.formats.fields import Fields
from finetune_trainer.data.samples import Document


def text(fields: Fields) -> Document:
    """text: the document."""
    key = fields.required("text", "text", meaning="a document")
    return Document(fields.text(key, "a document"))
