"""The form that creates a FineTuneJob, made from the schema of the CRD.

    a job --values--> values --render--> HTML --browser--> posted --manifest--> a job

`values` are texts by the names of controls. A name is the path of a field, so the messages of the API server find their
controls (`errors`). The form works without scripts: a button that adds a row posts the form, and `typed` returns the
values to show again.
"""

from finetune_ui.form.loading import clone, import_llamafactory, load, new, save
from finetune_ui.form.names import only_changes, pressed
from finetune_ui.form.reading import manifest, mistakes, typed
from finetune_ui.form.refusals import NO_ERRORS, Errors, errors
from finetune_ui.form.rendering import render, render_load
from finetune_ui.form.showing import values

__all__ = [
    "NO_ERRORS",
    "Errors",
    "clone",
    "errors",
    "import_llamafactory",
    "load",
    "manifest",
    "mistakes",
    "new",
    "only_changes",
    "pressed",
    "render",
    "render_load",
    "save",
    "typed",
    "values",
]
