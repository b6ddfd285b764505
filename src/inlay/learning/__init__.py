"""Learning one object from its photos (DreamCom), into a file that stands for it: a concept."""
