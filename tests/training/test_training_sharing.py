"""Which devices write what of a checkpoint."""

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from dit.training import checkpoint as checkpoints


@pytest.mark.parametrize(("rows", "slices"), [(1, 0), (2**15, 8)])
def test_devices_share_the_writing_of_large_arrays_alone(tmp_path, monkeypatch, rows, slices):
    """Each slice would be a program to compile. Rows of 256 bytes, which eight devices hold."""
    mesh = jax.make_mesh((8,), ("data",))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    x = np.arange(rows * 64, dtype=np.float32).reshape(rows, 64)
    cut, taken = jax.lax.slice_in_dim, []
    monkeypatch.setattr(jax.lax, "slice_in_dim", lambda *a, **k: taken.append(a) or cut(*a, **k))
    with checkpoints.open_manager(tmp_path) as manager:
        args = {"state": ocp.args.PyTreeSave({"x": jax.device_put(x, where)})}
        args |= {name: ocp.args.JsonSave({}) for name in ("data", "meta")}
        manager.save(0, args=ocp.args.Composite(**args))
        manager.wait_until_finished()
        found = manager.restore(0, args=ocp.args.Composite(state=ocp.args.PyTreeRestore()))
    np.testing.assert_array_equal(found["state"]["x"], x)
    assert len(taken) == slices
