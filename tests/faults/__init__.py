"""Real faults of real processes: killed, stopped, cut off, on devices that fail; the volume survives each of them."""
