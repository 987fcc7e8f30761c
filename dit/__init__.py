"""A pure-functional diffusion transformer (DiT) in JAX and Flax, for images and video."""

__version__ = "0.1.0"
