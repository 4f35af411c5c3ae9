"""Format text: documents, as they are."""

from finetune_api.data import ColumnsSpec

from finetune_trainer.data.formats import values
from finetune_trainer.data.samples import Document


def text(row: values.Fields, columns: ColumnsSpec) -> Document:
    """text."""
    return Document(values.text(row, columns.text or "text", "a document"))
