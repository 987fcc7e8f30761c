"""Moving scenes: sentences (``grammar``), what happens (``motion``), and films of it (``film``)."""
