"""Times and sizes of the engine; the shell fills them in from flags, environment and file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Times are seconds.

    Attributes:
        workers: How many rollouts are worked on at once; those of one namespace get three quarters of them at most.
        resync: How often a rollout is looked at when nothing happens.
        sweep: How often the leader lists all rollouts to find what a watch has missed.
        pass_timeout: The longest that one look at one rollout may take.
        read_timeout: The longest that one reading of the mesh or of endpoints may take.
        write_timeout: The longest that one write may take; within the margin of the lease, see `LeaseSettings`.
        stop_grace: How long passes under way may go on when the operator stops.
        stuck_after: Keys that wait while no worker takes any for longer than this mean that the engine is stuck.
        wake_floor: Two looks at a rollout that asks for them itself are at least this far apart.
    """

    workers: int = 64
    resync: float = 300.0
    sweep: float = 300.0
    pass_timeout: float = 60.0
    read_timeout: float = 5.0
    write_timeout: float = 5.0
    stop_grace: float = 8.0
    stuck_after: float = 120.0
    wake_floor: float = 0.1

    @property
    def share(self) -> int:
        """Return how many rollouts of one namespace are worked on at once."""
        return max(1, self.workers - max(1, self.workers // 4))


@dataclass(frozen=True, slots=True)
class LeaseSettings:
    """Times are seconds; they must satisfy ``retry < renew_deadline < duration``.

    Attributes:
        duration: How long after its last renewal others respect a lease.
        renew_deadline: How long after its last successful renewal this replica still writes. In the `margin` after it
            its last request dies out.
        retry: How often a lease is renewed, or looked at by those who do not hold it; also the timeout of a request.
    """

    duration: float = 15.0
    renew_deadline: float = 10.0
    retry: float = 2.0

    @property
    def margin(self) -> float:
        """Return for how long others still respect a lease that its holder writes by no more."""
        return self.duration - self.renew_deadline

    def __post_init__(self) -> None:
        if not 0 < self.retry < self.renew_deadline < self.duration:
            raise ValueError(
                f"lease times must satisfy 0 < retry < renewDeadline < duration, but retry is {self.retry:g} s, "
                f"renewDeadline {self.renew_deadline:g} s and duration {self.duration:g} s"
            )
