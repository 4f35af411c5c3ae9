"""What a FineTuneJob is.

The pydantic models in this package are the only source of the API: the CRD, the API reference and the editors' JSON
schema are generated from them (``python -m finetune_api generate``), and the operator and the trainer parse with them.
``job`` is the object, ``spec`` and ``status`` its halves, ``contract`` what the operator hands to the trainer.
"""
