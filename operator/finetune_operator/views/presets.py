"""The presets of a namespace: its ConfigMap `finetune-presets`."""

from dataclasses import dataclass, field

from finetune_api.presets import CONFIG_MAP, KEY, Presets, read

from finetune_operator.views.metadata import Key, Raw, metadata, section


@dataclass(frozen=True)
class PresetsView:
    """What the ConfigMap says."""

    presets: Presets = field(default_factory=Presets)
    problem: str = ""
    """Why it cannot be used; empty if it can."""
    namespace: str = ""
    uid: str = ""
    resource_version: int = 0

    @property
    def key(self) -> Key:
        return self.namespace, CONFIG_MAP

    @property
    def name(self) -> str:
        return CONFIG_MAP


def presets_view(raw: Raw) -> PresetsView:
    meta = metadata(raw)
    identity = {"namespace": meta["namespace"], "uid": meta["uid"], "resource_version": int(meta["resourceVersion"])}
    text = section(raw, "data").get(KEY)
    if not isinstance(text, str):
        return PresetsView(problem=f"it has no key {KEY}", **identity)
    try:
        return PresetsView(read(text), **identity)
    except ValueError as error:
        return PresetsView(problem=str(error), **identity)
