"""Where arrays live: the device mesh and the table from logical axes to mesh axes."""
