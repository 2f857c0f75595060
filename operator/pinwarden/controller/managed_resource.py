"""A limit or group in the operator: the observed object, its status, and a write budget."""

from dataclasses import dataclass, field, replace
from time import monotonic

from pinwarden.controller.ratelimit import TokenBucket
from pinwarden.controller.resources import ObservedResource, Status, applied_to, essence
from pinwarden.plan.group_on_node import GroupOnNode
from pinwarden.plan.limit_on_node import LimitOnNode
from pinwarden.plan.share_cache import ShareCache

STATUS_BURST = 20
STATUSES_PER_SECOND = 1 / 5


@dataclass(slots=True)
class ManagedResource:
    """A limit or group, its stored status, and caches for the next status.

    `has_finalizer` is also true while a removed finalizer is about to be restored.
    `unapplied_since` is the monotonic time at which this generation was first observed, and None
    once its status says Applied.
    """

    observed: ObservedResource
    status: Status | None
    version: int
    has_finalizer: bool = False
    unapplied_since: float | None = None
    shares_cache: ShareCache[LimitOnNode] = field(default_factory=ShareCache)
    group_shares_cache: ShareCache[GroupOnNode] = field(default_factory=ShareCache)
    write_bucket: TokenBucket = field(
        default_factory=lambda: TokenBucket(STATUSES_PER_SECOND, STATUS_BURST)
    )

    @classmethod
    def of(cls, observed: ObservedResource) -> "ManagedResource":
        """Return the entry of an object that is observed for the first time."""
        applied = applied_to(observed.status, observed.generation)
        unapplied_since = None if applied else monotonic()
        return cls(observed, observed.status, observed.version, unapplied_since=unapplied_since)

    def update(self, observed: ObservedResource) -> bool:
        """Store a later state of this object and return whether the operator must process it.

        An older state is ignored, and so is the echo of the operator's own status write.
        """
        last = self.observed
        if observed.version < last.version:
            return False
        same_generation = observed.generation == last.generation
        if same_generation and (observed.resource is None) == (last.resource is None):
            # Caches depend on the identity of this object.
            observed = replace(observed, resource=last.resource)
        is_echo = observed.version <= self.version and essence(observed) == essence(last)
        if observed.version > self.version:
            self.status, self.version = observed.status, observed.version
        if not same_generation:
            self.unapplied_since = monotonic()
        if applied_to(observed.status, observed.generation):
            self.unapplied_since = None
        self.observed = observed
        return not is_echo
