"""The form as HTML. Every text is escaped by Jinja; no script and no style is inline."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from finetune_cli.importing.notes import Note
from jinja2 import Environment, Template

from finetune_ui import markup, texts
from finetune_ui.form import names, plain, view
from finetune_ui.form.names import Values
from finetune_ui.form.refusals import NO_ERRORS, Errors


def render(
    values: Values,
    errors: Errors = NO_ERRORS,
    csrf: str = "",
    *,
    action: str = "",
    namespace: str = "",
    names: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """The whole form as a fragment of HTML.

    `values` are those of `finetune_ui.form.values` or `typed`. `csrf` is the text of the hidden field `csrf`. The form
    is posted to `action`, '' for the address of the page; the button that was pressed is in the field `do`.
    `namespace` is chosen if the values have none. `names` are names to suggest: kind (namespaces, jobs, claims, queues,
    secrets) -> names. With namespaces, the namespace is chosen from a list.
    """
    given = dict(values)
    if namespace and not given.get("metadata.namespace"):
        given["metadata.namespace"] = namespace
    page = view.page(given, errors, names or {})
    return _template("form.html").render(page=page, csrf=csrf, action=action, suggested=names or {})


def render_load(
    csrf: str = "", *, action: str = "", text: str = "", problem: str = "", notes: Iterable[Note] = ()
) -> str:
    """The form that loads YAML or imports a configuration: it posts `text`, and `do` with load or import. `problem` is
    the message of a Problem, `notes` are those of an import."""
    said = [str(note) for note in notes]
    return _template("load.html").render(
        csrf=csrf, action=action, text=text, problem=problem, notes=said, limit=plain.MAX_BYTES // 1024
    )


@cache
def _environment() -> Environment:
    return markup.environment(t=texts.text, n=names, address=view.address)


def _template(name: str) -> Template:
    return _environment().get_template(f"form/{name}")
