"""What all requests share. Nothing of it belongs to a user, but for calls that are under way."""

from dataclasses import dataclass, field

from finetune_ui.fetches import Fetches
from finetune_ui.kube import Kube
from finetune_ui.rights import Rights
from finetune_ui.session import Sessions
from finetune_ui.settings import Settings
from finetune_ui.watch import Hub


@dataclass
class State:
    """The parts of the running page."""

    settings: Settings
    sessions: Sessions
    kube: Kube = field(default_factory=Kube)
    hub: Hub = field(default_factory=Hub)
    rights: Rights = field(default_factory=Rights)
    fetches: Fetches = field(default_factory=Fetches)

    def close(self) -> None:
        """End what runs."""
        self.hub.close()
        self.fetches.close()
        self.kube.close()
