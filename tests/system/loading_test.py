"""A full-size checkpoint is spread over eight devices without the host holding more than a slice of it.

The files are sparse: our own header, which is the published one (tests/models/hf_weights_test.py), and a hole as long
as the weights.  What is measured is the peak resident size of a process of its own, which on a CPU holds the devices'
buffers as well: they are subtracted, and so is what Python and JAX took before loading.
"""

import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from thinkfirst.core import files
from thinkfirst.models import config, gemma, hf_config, hf_weights, tensor_file, weights

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
WORKER = pathlib.Path(__file__).with_name("loading_worker.py")
GIGABYTE = 10**9


def sparse(folder, shape):
    """A checkpoint of zeros, a few kilobytes on disk; returns the bytes of its weights."""
    model = gemma.Model(shape)
    shards = hf_weights.plan(hf_weights.made(model, model.shapes()), hf_weights.SHARD_BYTES)
    folder.mkdir()
    for number, shard in enumerate(shards, 1):
        name = hf_weights.SINGLE if len(shards) == 1 else hf_weights.shard_name(number, len(shards))
        with open(folder / name, "wb") as file:
            header = tensor_file.header(sorted(shard, key=lambda tensor: tensor.name))
            file.write(header)
            file.truncate(len(header) + sum(tensor.num_bytes for tensor in shard))
    if len(shards) > 1:
        files.write_text(folder / hf_weights.INDEX, hf_weights.index_text(shards))
    described = hf_config.to_hf(shape, dtype="bfloat16", special=weights.GEMMA_IDS)
    files.write_text(folder / hf_config.CONFIG_NAME, json.dumps(described))
    return sum(tensor.num_bytes for shard in shards for tensor in shard)


def start(folder, num_devices, *distributed):
    command = [sys.executable, str(WORKER), str(folder), str(num_devices), *map(str, distributed)]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def told(process):
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


@pytest.mark.parametrize("make", [config.gemma3_1b, config.gemma2_2b], ids=["gemma3_1b", "gemma2_2b"])
def test_the_host_holds_a_slice_at_a_time(make, tmp_path):
    size = sparse(tmp_path / "model", make())
    found = told(start(tmp_path / "model", 8))
    assert found["devices"] == 8 and size <= found["kept"] < 1.01 * size  # norms are kept on every device
    on_host = found["peak"] - found["before"] - found["kept"]
    print(f"{make.__name__}: {size / GIGABYTE:.2f} GB of weights, {on_host / GIGABYTE:.3f} GB beside the devices' own")
    assert on_host < size / 8 + GIGABYTE


def test_each_process_reads_what_its_devices_keep(tmp_path):
    size = sparse(tmp_path / "model", dataclasses.replace(config.gemma3_1b(), num_layers=8))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    for found in [told(process) for process in [start(tmp_path / "model", 1, coordinator, 2, i) for i in range(2)]]:
        assert found["devices"] == 2
        assert size / 2 <= found["kept"] < 0.51 * size
        assert found["peak"] - found["before"] < size / 2 + GIGABYTE / 4
