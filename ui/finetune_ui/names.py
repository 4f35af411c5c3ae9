"""Names of namespaces and objects in addresses: what Kubernetes allows, so that no path of the API server is made of
anything else."""

import re

from starlette.convertors import Convertor, register_url_convertor

NAME = r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?"


class _Name(Convertor[str]):
    regex = NAME

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("name", _Name())


def is_name(text: str) -> bool:
    """Whether this is a name of Kubernetes."""
    return re.fullmatch(NAME, text) is not None
