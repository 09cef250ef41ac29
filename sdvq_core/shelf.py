"""What there is of a model: plans of arms and finished artifacts, here or on the Hub. Nothing is made or kept warm."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from sdvq_core.arms import Arm, parse_arm
from sdvq_core.diffusion.sources import Source, at_hand, find_source
from sdvq_core.errors import SdvqError, StoreError
from sdvq_core.hub_artifacts import HubArtifacts
from sdvq_core.jobs import Notice, Progress
from sdvq_core.peers import Peer, peer_ledger
from sdvq_core.plan import CompressionPlan, Rule
from sdvq_core.production import UNFINISHED, recipe_digest, recipe_words
from sdvq_core.records import BaseInfo, Ledger
from sdvq_core.statistics import Calibration
from sdvq_core.store import Manifest, ModelStore, blank_metadata, check_place, is_artifact, read_manifest, read_report
from sdvq_core.targets import Target, guess, solution_key, solve
from sdvq_core.tuning import known_damage

if TYPE_CHECKING:
    from torch import nn


class Shelf:
    """Plans and artifacts by model and arm. data: folder of caches; calibration: as of `Engine`."""

    def __init__(self, data: Path, calibration: Calibration) -> None:
        self.data, self.calibration = data, calibration
        self.store = ModelStore(data / "artifacts")
        self.hub = HubArtifacts.from_environment(self.store)
        self.loaded: tuple[Source, str] | None = None  # its fingerprint holds, whatever becomes of its files
        self._solved: dict[tuple[str, Target], tuple[Rule, ...]] = {}

    def fingerprint(self, model: str) -> str:
        """Digest of the UNet's content."""
        from sdvq_core.diffusion.base_model import fingerprint

        source, loaded = find_source(model), self.loaded
        if loaded is not None and loaded[0] == source:
            return loaded[1]
        return fingerprint(source, self.data)

    def plan(self, model: str, arm: Arm) -> CompressionPlan:
        """What `arm` does to the UNet of `model`, from shapes alone; a guess where its bits are not allocated yet."""
        source = find_source(model)
        rules = self.rules(model, arm)
        return _plan(source, _guess(source, arm.target) if rules is None and arm.target else rules or ())

    def rules(self, model: str, arm: Arm) -> tuple[Rule, ...] | None:
        """The rules of `arm` for `model`; None where its bits are yet to be allocated."""
        source = find_source(model)
        if arm.target is None:
            return arm.rules
        if not at_hand(source):
            return None
        base = self.fingerprint(model)
        if solution_key(base, arm.target) in arm.allocated:
            return arm.allocated[solution_key(base, arm.target)]
        if (base, arm.target) not in self._solved:
            damage = known_damage(source, base, arm.target, self.data, self.calibration)
            if damage is None:
                return None
            self._solved[base, arm.target] = solve(_skeleton(source), arm.target, damage)
        return self._solved[base, arm.target]

    def check(self, model: str, arm: Arm) -> None:
        """Say before any work what cannot be: a rule that matches nothing, an artifact of another model."""
        self.plan(model, arm)
        if arm.artifact is not None:
            self.check_base(arm.artifact, model)

    def ledger(self, model: str, arm: Arm) -> Ledger:
        """Size of `arm` before it is made; exact once `rules` are known. For `fp16`, with every tensor in 16 bits.

        Of a peer, where it works on the layers of our arms.
        """
        if arm.artifact is not None:
            return read_report(arm.artifact).ledger
        if arm.peer is not None:
            return _ledger_of_peer(find_source(model), arm.peer)
        plan = self.plan(model, arm)
        return plan.ledger(blank_metadata(len(plan.assignments)) if arm.compresses else {})

    def cached(self, model: str, arm: Arm) -> Path | None:
        """Folder of the finished artifact of `arm`, if there is one."""
        if arm.artifact is not None or not at_hand(find_source(model)) or not self.rules(model, arm):
            return arm.artifact
        return self.store.get(self.key(model, arm, self.plan(model, arm)))

    def drop(self, model: str, arm: Arm) -> None:
        """Remove the artifact of `arm` from the cache."""
        self.store.drop(self.key(model, arm, self.plan(model, arm)))

    def offered(self, model: str, arm: Arm) -> bool:
        """Whether the Hub repository of finished artifacts, where one is configured, has that of `arm`."""
        if self.hub is None or not arm.compresses or not at_hand(find_source(model)) or not self.rules(model, arm):
            return False
        return self.hub.has(self.key(model, arm, self.plan(model, arm)))

    def made(self, model: str, arm: Arm) -> bool:
        """Whether nothing is left to be computed for `arm`: it is here, or can be fetched."""
        return not arm.compresses or self.cached(model, arm) is not None or self.offered(model, arm)

    def pull(self, model: str, arm: Arm) -> Generator[Progress | Notice, None, Path | None]:
        """Progress; returns the folder of the artifact from the Hub, if it is sound."""
        assert self.hub is not None
        plan = self.plan(model, arm)
        found: Path | None = None
        for event in self.hub.pull(self.key(model, arm, plan), plan, self.fingerprint(model)):
            if isinstance(event, Path):
                found = event
            else:
                yield replace(event, arm=arm.word) if isinstance(event, Progress) else event
        return found

    def key(self, model: str, arm: Arm, plan: CompressionPlan) -> str:
        """Under which the artifact of `arm` is kept, where `plan` is its plan."""
        base = self.fingerprint(model)
        return self.store.key(recipe_digest(find_source(model), base, plan, arm, self.calibration), base)

    def check_out(self, folder: Path, model: str, arm: Arm, partial: bool = False) -> None:
        """StoreError where the artifact of `arm` cannot be put in `folder`, or would replace another one.

        partial: whether it is not finished, and so replaces none that is.
        """
        check_place(folder)
        if not is_artifact(folder) or self.rules(model, arm) is None:
            return
        there = read_manifest(folder)[1]
        if not self._replaces(there, model, arm) or (partial and UNFINISHED not in there.recipe):
            raise StoreError(
                f"{folder} holds {there.recipe} of {there.base.id} ({there.base.fingerprint}), which is not replaced "
                "by another artifact; name another folder, or remove that one"
            )

    def _replaces(self, there: Manifest, model: str, arm: Arm) -> bool:
        """Whether `there` is what `arm` makes of `model`, finished or not: the same content, or the same recipe."""
        base, plan = BaseInfo(model, self.fingerprint(model)), self.plan(model, arm)
        if there.base.fingerprint != base.fingerprint:
            return False
        made = self.store.get(self.key(model, arm, plan))
        if made is not None and read_manifest(made)[1].sha256 == there.sha256:
            return True
        words, now = there.recipe.split(UNFINISHED)[0], recipe_words(plan, arm, self.calibration, base)
        return words == now or (now == arm.word and self._spells(words, model, arm))

    def _spells(self, word: str, model: str, arm: Arm) -> bool:
        """Whether `word` is another way to write `arm`."""
        try:
            other = parse_arm(word)
            return other.compresses and self.key(model, other, self.plan(model, other)) == self.key(
                model, arm, self.plan(model, arm)
            )
        except SdvqError:
            return False

    def check_base(self, folder: Path, model: str) -> None:
        """StoreError for an artifact that was made from another model."""
        made_from, fingerprint = read_manifest(folder)[1].base, self.fingerprint(model)
        if made_from.fingerprint != fingerprint:
            raise StoreError(
                f"{folder} was made from {made_from.id} ({made_from.fingerprint}), not from {model} ({fingerprint}); "
                "use it with the model that it was made from"
            )


@lru_cache(maxsize=64)
def _plan(source: Source, rules: tuple[Rule, ...]) -> CompressionPlan:
    return CompressionPlan.resolve(_skeleton(source), rules)


@lru_cache(maxsize=64)
def _guess(source: Source, target: Target) -> tuple[Rule, ...]:
    return guess(_skeleton(source), target)


@lru_cache(maxsize=64)
def _ledger_of_peer(source: Source, peer: Peer) -> Ledger:
    return peer_ledger(_skeleton(source), peer)


@lru_cache(maxsize=4)
def _skeleton(source: Source) -> nn.Module:
    from sdvq_core.diffusion.base_model import unet_skeleton

    skeleton: nn.Module = unet_skeleton(source)
    return skeleton
