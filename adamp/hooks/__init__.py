"""Step hooks that give any torch optimizer the projection of AdamP and SGDP, or adaptive weight shrink."""

from adamp.hooks.handle import HookHandle

__all__ = ["HookHandle"]
