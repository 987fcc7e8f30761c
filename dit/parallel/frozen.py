"""Weights that nothing trains, on the devices of a mesh, and the fingerprints that tell them apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, SingleDeviceSharding

from dit.config import fingerprint
from dit.parallel.fingerprints import fingerprints
from dit.parallel.rules import shardings
from dit.types import Params, UserError, Weights

Frozen = Mapping[str, Weights]


def where(frozen: Frozen, mesh: Mesh | None) -> dict[str, Any]:
    """The shardings of the weights, as of any parameters; without a mesh the first device."""
    if mesh is None:
        here = SingleDeviceSharding(jax.local_devices()[0])
        return {n: jax.tree.map(lambda _: here, w.abstract) for n, w in frozen.items()}
    return {n: shardings(w.abstract, w.axes, mesh) for n, w in frozen.items()}


def whole(weights: Weights) -> Weights:
    """The same, to lie on every device instead of in parts."""
    axes = jax.tree.map(lambda x: (None,) * len(x.shape), weights.abstract)
    return dataclasses.replace(weights, axes=axes, placed={})


def shapes(frozen: Frozen, mesh: Mesh | None = None) -> dict[str, Params]:
    """Their shapes and, with a mesh, shardings, in place of arrays."""
    if mesh is None:
        return {name: weights.abstract for name, weights in frozen.items()}
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        {name: weights.abstract for name, weights in frozen.items()},
        where(frozen, mesh),
    )


def place(frozen: Frozen, mesh: Mesh | None) -> dict[str, Params]:
    """The weights themselves, read when they are first asked for on this mesh, by all its processes.

    Raises UserError for others than are expected.
    """
    spots = where(frozen, mesh)
    for name, weights in frozen.items():
        if mesh not in weights.placed:
            params = weights.read(spots[name])
            if weights.expected not in (None, found := identity(params, weights)):
                raise UserError(
                    f"{weights.where} are not those that this run, or its data, were made with: got "
                    f"{found}, expected {weights.expected}; put the same files there again"
                )
            weights.placed[mesh] = params
    return {name: weights.placed[mesh] for name, weights in frozen.items()}


def expecting(user: Any, fingerprint: str | None) -> Any:
    """A codec or a text encoder whose weights, if it has any, must have this fingerprint."""
    if user.weights is None:
        return user
    weights = dataclasses.replace(user.weights, expected=fingerprint)
    return dataclasses.replace(user, weights=weights)


def listed(names: str | Iterable[str]) -> tuple[str, ...]:
    """``mesh.whole`` as names: a command line gives one without a tuple."""
    return (names,) if isinstance(names, str) else tuple(names)


def without(name: str, names: str | Iterable[str]) -> tuple[str, ...]:
    """``mesh.whole`` of a config that no longer has the weights ``name``."""
    return tuple(n for n in listed(names) if n != name)


def held(names: str | Iterable[str], **users: Any) -> tuple[Any, ...]:
    """The users of frozen weights, or such weights, of which every device is to hold those named whole.

    Raises UserError for a name without frozen weights.
    """
    own = {
        n: u if isinstance(u, Weights) else getattr(u, "weights", None) for n, u in users.items()
    }
    for name in listed(names):
        if own[name] is None:
            there = ", ".join(n for n, weights in own.items() if weights is not None)
            raise UserError(
                f"got mesh.whole={name!r}, of which this config has no frozen weights; expected names "
                f"of those that it has ({there or 'none'}), or mesh.whole=()"
            )
        weights = whole(own[name])
        alone = isinstance(users[name], Weights)
        users[name] = weights if alone else dataclasses.replace(users[name], weights=weights)
    return tuple(users.values())


def identity(params: Params, weights: Weights) -> str:
    """Twelve hex digits over every bit of the ``params`` of ``weights``, on any mesh the same."""
    trees = (params,) if weights.apart is None else weights.apart(params)
    each = (fingerprints(tree, weights.compared) for tree in trees)
    return fingerprint({name: bits for found in each for name, bits in found.items()})


def identities(frozen: Frozen, mesh: Mesh | None) -> dict[str, str]:
    """The fingerprints of all, by name."""
    return {n: identity(w, frozen[n]) for n, w in place(frozen, mesh).items()}


def check_known(now: Mapping[str, str], then: Mapping[str, str], where: str) -> None:
    """Raise UserError where the weights of a run, by their fingerprints, are not what they were."""
    for name, found in then.items():
        if now.get(name) != found:
            raise UserError(
                f"{where} was made with other frozen weights of the {name} than are given now: there "
                f"{found}, now {now.get(name, 'none')}. Give the same files, or another --workdir"
            )
