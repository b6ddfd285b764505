"""What DreamCom and DreamEdit share: a box filled with a concept, blended in, with details."""
