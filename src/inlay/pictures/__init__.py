"""Files and arrays: reading, writing, colour, boxes, contact sheets."""
