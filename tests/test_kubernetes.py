"""The manifests of contrib/kubernetes: valid by the published schemas, and consistent with one another."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.external_programs import find_program, output_of
from tests.program import ROOT

pytestmark = pytest.mark.pure

FOLDER = ROOT / "contrib/kubernetes"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
PATHS = sorted(path for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml")
MANIFESTS: dict[str, Any] = {
    manifest["kind"]: manifest for path in PATHS for manifest in yaml.safe_load_all(path.read_text())
}
LABELS = {"app.kubernetes.io/name": "blackhole"}


@pytest.mark.parametrize("kind", sorted({*MANIFESTS} - {"PodMonitor"}))
def test_manifest_is_valid_by_the_schema_of_kubernetes(kind: str) -> None:
    kubernetes_validate.validate(MANIFESTS[kind], kubernetes_validate.latest_version(), strict=True)


def test_schema_finds_a_mistake() -> None:
    wrong = MANIFESTS["Service"] | {"spec": {"selector": LABELS, "ports": [{"prot": 25}]}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)


def test_every_file_but_that_of_the_operator_is_applied() -> None:
    assert sorted(KUSTOMIZATION["resources"]) == [
        path.name for path in PATHS if path.name != "podmonitor.yaml"
    ]
    if find_program("kubectl"):
        made = yaml.safe_load_all(output_of("kubectl", "kustomize", str(FOLDER)))
        assert {manifest["kind"] for manifest in made} == {*MANIFESTS} - {"PodMonitor"}


def test_everything_selects_the_pods_of_the_deployment() -> None:
    specs = {kind: manifest["spec"] for kind, manifest in MANIFESTS.items()}
    assert specs["Deployment"]["template"]["metadata"]["labels"] == LABELS
    assert specs["Service"]["selector"] == LABELS
    assert specs["NetworkPolicy"]["podSelector"]["matchLabels"] == LABELS
    for kind in ("Deployment", "PodDisruptionBudget", "PodMonitor"):
        assert specs[kind]["selector"]["matchLabels"] == LABELS
    assert specs["HorizontalPodAutoscaler"]["scaleTargetRef"]["name"] == "blackhole"


def test_ports_are_named_as_the_container_names_them() -> None:
    container = container_of_the_deployment()
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"smtp": 2525, "http": 8025}
    assert {port["targetPort"] for port in MANIFESTS["Service"]["spec"]["ports"]} == {*ports}
    (ingress,) = MANIFESTS["NetworkPolicy"]["spec"]["ingress"]
    assert {port["port"] for port in ingress["ports"]} == {*ports}
    assert MANIFESTS["PodMonitor"]["spec"]["podMetricsEndpoints"][0]["port"] in ports
    assert container["readinessProbe"]["httpGet"]["port"] in ports


def test_all_egress_is_forbidden() -> None:
    policy = MANIFESTS["NetworkPolicy"]["spec"]
    assert (policy["policyTypes"], policy["egress"]) == (["Ingress", "Egress"], [])


def test_pod_may_do_no_more_than_serve() -> None:
    context = container_of_the_deployment()["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert MANIFESTS["Deployment"]["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"] is True


def container_of_the_deployment() -> Any:
    (container,) = MANIFESTS["Deployment"]["spec"]["template"]["spec"]["containers"]
    return container
