"""Lints, renders and validates the chart with every file of ci/, and prints the findings: `make chart`."""

import os
import sys
from collections import Counter

import chart_validate
from chart_render import Renderer, examples


def main() -> int:
    """Print a line for each file. Return 1 if there are findings."""
    renderer, kinds, num_wrong = Renderer(), Counter[str](), 0
    for name, given in examples().items():
        manifests = renderer.render(given)
        kinds.update(manifest["kind"] for manifest in manifests)
        num_objects = sum(manifest["kind"] != "Notes" for manifest in manifests)
        found = renderer.lint(given)
        found += chart_validate.complaints(manifests, renderer.all_values(given))
        num_wrong += len(found)
        pods = len(chart_validate.pod_templates(manifests))
        apps = len(chart_validate.serve_config_of(manifests)["applications"])
        findings = "\n  ".join(["no complaint" if not found else "", *found]).strip()
        print(f"{name:28} {num_objects:3} objects {pods:2} pods {apps:2} applications  {findings}")
    print(", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())))
    checks = f"Helm lint strict, Kubernetes {chart_validate.KUBERNETES} schemas, Serve's schema, security"
    crd = os.environ.get(chart_validate.CRD_VARIABLE)
    print(
        f"checked: {checks}, " + (f"KubeRay's CRD ({crd})" if crd else "but not KubeRay's CRD: not at hand")
    )
    return 1 if num_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
