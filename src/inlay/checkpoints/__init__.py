"""Files to networks: folders, single files, the hub, LoRA, branches, concepts."""
