"""How the weights that ship are made: embedded checkpoint, T2I-Adapter, harmonizer."""
