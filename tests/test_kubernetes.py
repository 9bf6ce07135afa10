"""The manifests and the Helm chart of contrib/kubernetes: valid by the published schemas, and consistent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.external_programs import find_program, output_of, path_of, requires
from tests.program import ROOT, run

pytestmark = pytest.mark.pure

FOLDER = ROOT / "contrib/kubernetes"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
FLEET = yaml.safe_load((FOLDER / "fleet-egress.yaml").read_text())
NO_MANIFESTS = ("kustomization.yaml", "fleet-egress.yaml")
PATHS = sorted(path for path in FOLDER.glob("*.yaml") if path.name not in NO_MANIFESTS)
MANIFESTS: dict[str, Any] = {
    manifest["kind"]: manifest for path in PATHS for manifest in yaml.safe_load_all(path.read_text())
}
LABELS = {"app.kubernetes.io/name": "blackhole"}


@pytest.mark.parametrize("kind", sorted({*MANIFESTS} - {"PodMonitor"}))
def test_manifest_is_valid_by_the_schema_of_kubernetes(kind: str) -> None:
    kubernetes_validate.validate(MANIFESTS[kind], kubernetes_validate.latest_version(), strict=True)


def test_egress_of_a_fleet_is_valid_and_of_the_same_pods() -> None:
    kubernetes_validate.validate(FLEET, kubernetes_validate.latest_version(), strict=True)
    assert FLEET["spec"]["podSelector"]["matchLabels"] == LABELS
    assert FLEET["spec"]["policyTypes"] == ["Egress"]


def test_url_of_a_fleet_comes_from_a_secret_that_may_be_missing() -> None:
    (fleet,) = (one for one in container_of_the_deployment()["env"] if one["name"] == "BLACKHOLE_FLEET")
    assert fleet["valueFrom"]["secretKeyRef"] == {"name": "blackhole-fleet", "key": "url", "optional": True}


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


# The chart

CHART = FOLDER / "chart"
SCENARIO = '[[rule]]\nphase = "RCPT"\nreply = "451 4.3.0 Later"\n'
EVERYTHING = (
    *("--set=podMonitor.enabled=true", f"--set-string=scenario={SCENARIO}", "--set=options.workers=2"),
    *("--set=networkPolicy.egress[0].ports[0].port=6379", "--set=nodeSelector.disk=ssd"),
    *("--set=tolerations[0].operator=Exists", "--set=imagePullSecrets[0].name=registry"),
    "--set=fleet.secret=redis",
)


def rendered(*arguments: str, release: str = "blackhole") -> dict[str, Any]:
    """Return what the chart makes, by kind."""
    text = output_of(path_of("helm"), "template", release, str(CHART), *arguments)
    return {manifest["kind"]: manifest for manifest in yaml.safe_load_all(text)}


def without(value: Any, *keys: str) -> Any:
    """Return a value without these keys, at any depth."""
    if isinstance(value, dict):
        return {key: without(inner, *keys) for key, inner in value.items() if key not in keys}
    return [without(inner, *keys) for inner in value] if isinstance(value, list) else value


@requires("helm")
def test_helm_finds_no_fault_in_the_chart() -> None:
    assert "0 chart(s) failed" in output_of(path_of("helm"), "lint", "--strict", str(CHART))


@requires("helm")
@pytest.mark.parametrize("arguments", [(), EVERYTHING], ids=["defaults", "everything"])
def test_what_the_chart_makes_is_valid_by_the_schema_of_kubernetes(arguments: tuple[str, ...]) -> None:
    made = rendered(*arguments)
    assert {*made} == {*MANIFESTS} - {"PodMonitor"} | ({"PodMonitor", "ConfigMap"} if arguments else set())
    for kind in {*made} - {"PodMonitor"}:
        kubernetes_validate.validate(made[kind], kubernetes_validate.latest_version(), strict=True)


@requires("helm")
def test_chart_makes_what_the_manifests_say() -> None:
    made = rendered("--set=podMonitor.enabled=true", "--set=fleet.secret=blackhole-fleet")
    assert {*made} == {*MANIFESTS}
    own = ("app.kubernetes.io/instance", "imagePullPolicy", "type", "image", "optional")
    for kind, manifest in MANIFESTS.items():
        assert without(made[kind]["spec"], *own) == without(manifest["spec"], *own)
        assert made[kind]["metadata"]["name"] == manifest["metadata"]["name"]
    assert made["NetworkPolicy"]["spec"]["egress"] == []


@requires("helm")
def test_two_releases_of_the_chart_have_different_names_and_pods() -> None:
    one, other = rendered(release="mail"), rendered(release="other")
    for kind in one:
        assert one[kind]["metadata"]["name"] == "mail-blackhole"
        assert other[kind]["metadata"]["name"] == "other-blackhole"
    selectors = [made["Service"]["spec"]["selector"] for made in (one, other)]
    assert selectors[0] != selectors[1]
    labels = one["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for kind, path in (("Service", "selector"), ("NetworkPolicy", "podSelector"), ("Deployment", "selector")):
        selector = one[kind]["spec"][path]
        assert selector.get("matchLabels", selector) == labels


@requires("helm")
def test_a_pod_of_the_chart_reads_the_scenario_and_the_options(tmp_path: Path) -> None:
    made = rendered(*EVERYTHING)
    (container,) = made["Deployment"]["spec"]["template"]["spec"]["containers"]
    (fleet,) = (one for one in container["env"] if "valueFrom" in one)
    reference = fleet["valueFrom"]["secretKeyRef"]
    assert (fleet["name"], reference) == ("BLACKHOLE_FLEET", {"name": "redis", "key": "url"})
    variables = {one["name"]: one["value"] for one in container["env"] if one is not fleet}
    assert variables == {
        "BLACKHOLE_MODE": "accept",
        "BLACKHOLE_WORKERS": "2",
        "BLACKHOLE_SCENARIO": "/etc/blackhole/scenario.toml",
    }
    (name,) = made["ConfigMap"]["data"]
    (mount,) = container["volumeMounts"]
    assert f"{mount['mountPath']}/{name}" == variables["BLACKHOLE_SCENARIO"]
    (tmp_path / name).write_text(made["ConfigMap"]["data"][name])
    variables["BLACKHOLE_SCENARIO"] = str(tmp_path / name)
    done = run("-t", "--port=2525", **variables)
    assert done.returncode == 0, done.stderr
