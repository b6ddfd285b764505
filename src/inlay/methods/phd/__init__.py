from inlay.methods.phd.method import METHOD

__all__ = ["METHOD"]
