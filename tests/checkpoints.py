"""Checkpoint folders opened on one device, as most tests want them."""

import os
import pathlib

import jax

from thinkfirst.core import mesh, sharding
from thinkfirst.models import gemma, weights

GOLDEN = pathlib.Path(os.environ.get("THINKFIRST_GOLDEN", pathlib.Path(__file__).resolve().parent / "golden"))


def layout(model):
    """Every parameter of a model on the first device."""
    grid = mesh.make(mesh.MeshConfig(), jax.devices()[:1])
    return sharding.parameters(model.letters(), model.shapes(), grid)


def opened(folder):
    """(model, parameters) of a folder, or of a golden one by its name."""
    folder = GOLDEN / folder
    model = gemma.Model(weights.config(folder))
    return model, weights.load(folder, model, layout(model))
