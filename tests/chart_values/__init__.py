"""What is generated from the chart's values.yaml: its schema and its README.

`make generate` writes both, `make check` compares them. ``reader`` reads keys, defaults and comments; ``types`` has the
types that a comment can name; ``schema`` and ``readme`` write the two files.
"""
