"""How a model is trained.

``launcher.launch`` is PID 1 of the container: it starts the ranks and ends with the contract's exit code. Each rank
(``launcher.worker``) asks ``director`` for the workflow of the job's stage (``stages/<stage>/workflow.py``). A workflow
reads top to bottom like the recipe of its stage, and calls ``training``, ``data``, ``model``, ``checkpoints``,
``reporting`` and ``artifact``.
"""
