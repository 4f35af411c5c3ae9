"""The API of FineTuneJobs.

The pydantic models in this package are the only source of the API. ``python -m finetune_api generate`` makes the CRD,
the API reference and the JSON schema for editors from them. The operator and the trainer parse objects with them.
``job`` is the object, ``spec`` and ``status`` are its halves, ``contract`` is what the operator passes to the trainer.
"""
