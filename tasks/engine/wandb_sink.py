"""The old place of `WandbLogger`, for configurations whose `_target_` names it."""

from tasks.engine.loggers import WandbLogger as WandbSink

__all__ = ["WandbSink"]
