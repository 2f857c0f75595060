"""The limits of a subject, as a configuration names them."""

from pinwarden.api.nodepinconfig import NodePinConfigSpec
from pinwarden.node.pods.policy import NodePolicy


def test_an_unlisted_pod_has_the_limit_for_unknown_pods() -> None:
    spec = NodePinConfigSpec.model_validate({"unknownPods": 4096, "pods": [{"uid": "p1"}]})
    policy = NodePolicy(spec, (), 7).of_pod("new")
    assert policy is not None
    assert policy.names == ("unknownPods",)


def test_a_listed_pod_has_all_its_limits() -> None:
    limit = {"name": "a", "uid": "u", "scope": "Pod", "limit": 1, "counting": "OncePerPod"}
    spec = NodePinConfigSpec.model_validate(
        {"limits": [limit], "pods": [{"uid": "p", "limits": ["a"]}]}
    )
    policy = NodePolicy(spec, (), 7).of_pod("p")
    assert policy is not None
    assert (policy.names, policy.limits, policy.unsupported) == (("a",), (), "NotSupported")
