"""Labels, names, commands and PromQL conditions that several alerts share."""

from typing import Final

LIMIT: Final = "kind, resource_namespace, limit"
GROUP: Final = "resource_namespace, group"
WHICH_LIMIT: Final = (
    "{{ $labels.kind }} {{ with $labels.resource_namespace }}{{ . }}/{{ end }}{{ $labels.limit }}"
)
WHICH_GROUP: Final = "SharedMemoryGroup {{ $labels.resource_namespace }}/{{ $labels.group }}"
SEE_NODES: Final = "List the nodes with the query `pinwarden_operator_node_problem` or:"
READ_LIMIT: Final = """```console
$ kubectl -n NAMESPACE describe pinlimit NAME        # clusterpinlimit NAME without a namespace
$ kubectl -n NAMESPACE get pinlimit NAME -o jsonpath='{.status.topPods}'
```"""
READ_GROUP: Final = """```console
$ kubectl -n NAMESPACE describe sharedmemorygroup NAME
$ kubectl -n NAMESPACE get sharedmemorygroup NAME -o jsonpath='{.status.nodes}'
```"""
SEE_OPERATOR: Final = """```console
$ kubectl -n pinwarden-system get pods -l app.kubernetes.io/component=operator
$ kubectl -n pinwarden-system logs deployment/pinwarden-operator --all-containers --tail=50
$ kubectl -n pinwarden-system get lease pinwarden-operator
```"""
SEE_AGENT: Final = """```console
$ kubectl -n pinwarden-system get pods -l app.kubernetes.io/component=agent -o wide
$ kubectl -n pinwarden-system logs POD -c agent --tail=50
$ kubectl get nodepinconfig NODE -o yaml
```"""
UNACCEPTED: Final = """$ kubectl get pinlimits,clusterpinlimits,sharedmemorygroups -A \
-o custom-columns='KIND:.kind,NAMESPACE:.metadata.namespace,NAME:.metadata.name,\
ACCEPTED:.status.conditions[?(@.type=="Accepted")].status,\
REASON:.status.conditions[?(@.type=="Accepted")].reason' | grep -vw True"""
STAYS: Final = "Limits in force stay in force: agents keep their last configuration."


def problem(name: str) -> str:
    """Return the PromQL for nodes with this problem (`controller.metrics_totals.PROBLEMS`)."""
    return f'max by (problem) (pinwarden_operator_nodes_with_problem{{problem="{name}"}}) > 0'


def condition(kind: str, condition: str, status: str, equals: str = "=") -> str:
    """Return the PromQL for a condition of a `limit` or `group`; `!=` negates the status."""
    by = LIMIT if kind == "limit" else GROUP
    selected = (
        f'pinwarden_operator_{kind}_condition{{condition="{condition}",status{equals}"{status}"}}'
    )
    return f"max by ({by}) ({selected}) == 1"


def not_enforced(kind: str) -> str:
    """Return the PromQL for a `limit` or `group` to enforce that has pods and is not Enforced."""
    by = LIMIT if kind == "limit" else GROUP
    wanted = f'pinwarden_operator_{kind}_info{{enforcement="Enforce"}}'
    pods = f"pinwarden_operator_{kind}_pods > 0"
    return (
        f"({condition(kind, 'Enforced', 'True', '!=')}) and on ({by}) {wanted} and on ({by}) {pods}"
    )
