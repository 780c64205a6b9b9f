"""Where the slices of objects come from: a user, who has seen to them, or propagation, which nobody may have looked at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from napari_apprentice.types import Plane

__all__ = ["Origin"]


@dataclass(frozen=True)
class Origin:
    """Where the slices of one object come from.

    Attributes
    ----------
    own : planes that the user clicked or painted in for this object, or approved
    carried : planes that propagation filled or ended before, and the error (1 - IoU) that is expected there
    outdated : axes across which the user has corrected a slice since the object was propagated across them
    ended : of the planes in ``carried`` those before which propagation ended: it put nothing there
    """

    own: frozenset[Plane] = frozenset()
    carried: Mapping[Plane, float] = field(default_factory=dict)
    outdated: frozenset[int] = frozenset()
    ended: frozenset[Plane] = frozenset()

    @property
    def filled(self) -> frozenset[Plane]:
        """Planes that propagation filled."""
        return frozenset(self.carried) - self.ended

    def taken(self, planes: Iterable[Plane]) -> Origin:
        """The same with planes that are the user's from now on."""
        own = self.own | frozenset(planes)
        carried = {plane: error for plane, error in self.carried.items() if plane not in own}
        return replace(self, own=own, carried=carried, ended=self.ended - own)

    def corrected(self, planes: Iterable[Plane]) -> Origin:
        """The same with planes that the user changed: what was carried from there, or across there, is outdated."""
        planes = tuple(planes)
        after = self.taken(planes)
        carried = {plane.axis for plane in after.carried}
        return replace(after, outdated=after.outdated | {plane.axis for plane in planes if plane.axis in carried})

    def refilled(self, axis: int, carried: Mapping[int, float], ended: Iterable[int]) -> Origin:
        """The same after another propagation across ``axis``.

        Parameters
        ----------
        carried : the expected error of every index that it filled, or before which it ended
        ended : the latter
        """
        others = {plane: error for plane, error in self.carried.items() if plane.axis != axis}
        renewed = others | {Plane(axis, index): error for index, error in carried.items()}
        elsewhere = frozenset(plane for plane in self.ended if plane.axis != axis)
        return replace(self, carried=renewed, outdated=self.outdated - {axis}, ended=elsewhere | {Plane(axis, index) for index in ended})

    def joined(self, other: Origin) -> Origin:
        """Of both objects together: what the user has seen to in one of them is the user's. See `ground.joined`."""
        carried = {plane: max(o.carried.get(plane, 0.0) for o in (self, other)) for plane in {*self.carried, *other.carried}}
        ended = frozenset(carried) - self.filled - other.filled
        return Origin(self.own, carried, self.outdated | other.outdated, ended).taken(other.own)

    def within(self, region: tuple[slice, ...]) -> Origin:
        """The same for a part of the object that ``region`` holds: beyond that, nothing was carried."""
        carried = {p: error for p, error in self.carried.items() if region[p.axis].start <= p.index < region[p.axis].stop}
        return replace(self, carried=carried, ended=self.ended & carried.keys())

    def facts(self) -> dict[str, Any]:
        """All of it as plain values, which `from_facts` reads."""
        carried = [(*plane, error) for plane, error in self.carried.items()]
        return {"own": sorted(self.own), "carried": carried, "outdated": sorted(self.outdated), "ended": sorted(self.ended)}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Origin:
        """The inverse of `facts`."""
        own, ended = (frozenset(Plane(*plane) for plane in facts[key]) for key in ("own", "ended"))
        return cls(own, {Plane(axis, index): error for axis, index, error in facts["carried"]}, frozenset(facts["outdated"]), ended)
