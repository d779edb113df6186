"""How five folders at the top of the checkout become one import name, `thinkfirst`.

There is no `thinkfirst/` folder and no `__init__.py` beside this file: either would shadow or pollute the package.
"""

import pathlib

import setuptools

LAYERS = ("core", "kernels", "models", "rl", "launch")
# What CI compiles and interprets is what a GPU runs.  180 MB to download: of the targets only `make test` installs it.
TRITON = "triton==3.6.0; sys_platform == 'linux'"
# launch/NAME.py with a function `cli`; each becomes the command thinkfirst-NAME
PROGRAMS = ("train", "evaluate", "generate", "score", "grade", "ablate", "export", "bench", "plan", "pod")


def packages() -> dict[str, str]:
    """Import name -> folder, for every folder of a layer that holds an `__init__.py`."""
    root = pathlib.Path(__file__).parent
    inits = (init for layer in LAYERS for init in sorted((root / layer).rglob("__init__.py")))
    folders = [init.parent.relative_to(root) for init in inits]
    return {".".join(("thinkfirst", *folder.parts)): folder.as_posix() for folder in folders}


setuptools.setup(
    name="thinkfirst",
    version="0.1.0",
    description="A low-level JAX trainer that teaches Gemma to show its work: sharded LoRA, GRPO, Pallas kernels",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=list(packages()),
    package_dir=packages(),
    package_data={
        "thinkfirst.kernels": ["block_sizes/*.json"],
        "thinkfirst.launch": ["demo_base/*", "sections_base/*"],
    },
    # `build/` and the Bazel file `BUILD` are one name on a case-insensitive disk.
    options={"build": {"build_base": ".build"}},
    install_requires=[
        "absl-py",
        "flax>=0.12.8",
        "fsspec",  # workdirs at a URL; Orbax brings it along
        "grain",
        "jax>=0.10.2",
        "jaxlib",
        "jaxtyping",
        "matplotlib",
        "numpy",
        "optax",
        "orbax-checkpoint>=0.12",
        "safetensors",
        "sentencepiece",
        "tensorboardX",
        "tqdm",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2"],
        # jax-triton 0.3 takes `out_shape` as kernels/*/gpu.py writes it; its later versions break on jax 0.12.
        "gpu": ["jax[cuda13]>=0.10.2,<0.12", "jax-triton>=0.3.1,<0.4", TRITON],
        "triton": [TRITON],
        "hf": ["datasets", "huggingface_hub", "pyarrow", "transformers"],
        "gcs": ["gcsfs"],
        "math": ["math-verify"],
        "profile": ["xprof"],
        "wandb": ["wandb"],
        "test": [
            "beartype",
            "build",
            # libtpu as JAX pins it: compiles for TPUs, and counts their cycles, without one.  210 MB to download.
            "jax[tpu]>=0.10.2; sys_platform == 'linux' and platform_machine == 'x86_64'",
            "mypy",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
            "setuptools>=70.1",  # `make wheel-check` builds with it, without a network
        ],
    },
    entry_points={
        "console_scripts": [f"thinkfirst-{name} = thinkfirst.launch.{name}:cli" for name in PROGRAMS],
    },
)
