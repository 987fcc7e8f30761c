"""The exit statuses that launchers go by: 2 for what would end in the same way again, and no other."""

import jax
import pytest
from launch_tools import load

from dit import cli
from dit.parallel import multihost
from dit.storage import StorageError
from dit.types import OutsideError, UserError

flags = load("flags")
ENDS = {
    "finished": (None, 0),
    "bad-input": (UserError("x"), flags.FAILED),
    "outside": (OutsideError("x"), 1),
    "bucket": (StorageError("x"), 1),
    "interrupted": (KeyboardInterrupt(), 130),
}


@pytest.mark.parametrize(("error", "status"), ENDS.values(), ids=ENDS)
def test_only_bad_input_ends_with_the_status_that_is_final(error, status, capsys, monkeypatch):
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: None)

    def main(argv):
        if error is not None:
            raise error

    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    assert ended.value.code == status
    assert len(capsys.readouterr().err.splitlines()) == (status != 0)


def test_hosts_that_do_not_answer_may_do_so_later(monkeypatch):
    """As when a node of a pod is slow to come."""

    def nobody(**_):
        raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED")

    monkeypatch.setattr(jax.distributed, "initialize", nobody)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    with pytest.raises(OutsideError, match="the 2 processes could not be connected at h:1"):
        multihost.initialize(coordinator="h:1", processes=2, process=1)
