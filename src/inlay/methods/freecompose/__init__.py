from inlay.methods.freecompose.method import METHOD

__all__ = ["METHOD"]
