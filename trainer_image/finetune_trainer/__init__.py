"""How a model is trained.

``launch`` is PID 1 of the container: it starts the ranks and ends with the contract's exit code. Each rank (``worker``)
asks the stage director (``director``) for the workflow of the job's stage (``stages/<stage>/workflow.py``), which reads
as that stage's whole playbook. ``data``, ``model``, ``checkpoints`` and ``reporting`` hold the steps.
"""
