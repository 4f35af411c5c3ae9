"""The demo: a FineTuneJob from nothing to an answer. ``python -m examples.demo cluster|laptop``.

`make demo` and `make demo-laptop` call it. ``cluster`` and ``laptop`` are the two playbooks. They use ``kubectl``,
``volume``, ``view``, ``plot`` and ``ending``.
"""
