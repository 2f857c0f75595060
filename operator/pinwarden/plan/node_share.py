"""The share of one node in the status of a limit or a group, and the conditions of both kinds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pinwarden.api.reasons import NO_PODS, NOT_REPORTED, PENDING, SILENT
from pinwarden.common.text import MOST
from pinwarden.plan.conditions import Observation, Observations, UntimedCondition, name_some, plural
from pinwarden.plan.types import Pod


@dataclass(frozen=True, slots=True)
class NodeShare:
    """The contribution of a node to a status.

    `silent`: the agent is not alive. `reported`: the agent has written a report. `acknowledged`:
    the agent acknowledged this very spec of the resource; `rejected`: why the agent never will.
    """

    node: str
    pods: int
    silent: bool
    reported: bool
    acknowledged: bool
    rejected: Observation | None


def name_pod(pod: Pod) -> str:
    """Return the subject of an observation about a pod."""
    return f"pod {pod.namespace}/{pod.name}"


def no_pods(kind: str) -> UntimedCondition:
    """Return the condition of a resource without a matching pod."""
    return UntimedCondition(kind, "True", NO_PODS, "No pod matches.")


def silence(kind: str, shares: Iterable[NodeShare]) -> UntimedCondition | None:
    """Return a condition about silent agents, None if all are alive."""
    if silent := silent_nodes(shares):
        return UntimedCondition(kind, "Unknown", SILENT, f"No answer from the agent of {silent}.")
    return None


def missing_reports(kind: str, shares: Iterable[NodeShare]) -> UntimedCondition | None:
    """Return a condition about missing reports, None if all agents have reported."""
    nodes = [f"node {share.node}" for share in shares if not share.reported]
    if not nodes:
        return None
    return UntimedCondition(
        kind, "Unknown", NOT_REPORTED, f"Nothing reported yet by {name_some(nodes)}."
    )


def applied(shares: Sequence[NodeShare]) -> UntimedCondition:
    """Return whether every node with a matching pod acknowledged this very spec."""
    if not shares:
        return no_pods("Applied")
    rejected = Observations.of(
        share.rejected for share in shares if share.rejected and not share.acknowledged
    )
    if rejected:
        return rejected.condition("Applied", "False", "Not applied")
    if silent := silence("Applied", shares):
        return silent
    late = [f"node {share.node}" for share in shares if not share.acknowledged]
    if late:
        return UntimedCondition(
            "Applied", "False", PENDING, f"Not acknowledged yet by {name_some(late)}."
        )
    nodes = plural(len(shares), "node")
    return UntimedCondition("Applied", "True", "Acknowledged", f"Acknowledged by {nodes}.")


def cut_figures(figures: Iterable[int | None]) -> UntimedCondition | None:
    """Return a condition if the sum of the figures is too large for a status, else None."""
    if sum(figure for figure in figures if figure is not None) <= MOST:
        return None
    message = (
        f"Figures are lower bounds: the reports of the nodes sum up to more than {MOST} bytes."
    )
    return UntimedCondition("Complete", "False", "FiguresCut", message)


def silent_nodes(shares: Iterable[NodeShare]) -> str:
    """Return some of the nodes with a silent agent, empty if there is none."""
    return name_some([f"node {share.node}" for share in shares if share.silent])
