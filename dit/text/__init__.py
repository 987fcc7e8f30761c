"""Text encoders, one a file: from a caption to what a network is conditioned on."""
