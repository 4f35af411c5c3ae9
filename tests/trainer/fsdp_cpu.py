"""FSDP2 without a GPU: accelerate would train with DDP instead, without a word.

Called in each rank's process before anything else; whoever uses it asserts that weights are DTensors. The shards,
collectives and checkpoints are torch's own, over gloo.
"""

from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType


def install() -> None:
    original = AcceleratorState.__init__

    def init(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        # As accelerate does it for each kind of accelerator; CPUs alone are left out there.
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = init  # type: ignore[method-assign]
