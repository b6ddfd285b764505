"""inlay's nodes for ComfyUI, which loads this folder from its custom_nodes."""

from .nodes import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
