"""Renders the kustomizations of deploy/kubernetes: the few features that they use, no others.

kustomize itself is a Go program that Debian does not have. Patches are JSON patches only, which mean
the same to kustomize and to the package jsonpatch; names of generated ConfigMaps get no hash here.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import jsonpatch
import yaml

KNOWN = {"apiVersion", "kind", "resources", "components", "configMapGenerator", "images", "patches"}


def load_all(path: Path) -> list[dict]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


@dataclasses.dataclass
class Patch:
    """One entry of `patches`."""

    kind: str
    name: str
    operations: list
    options: dict
    source: Path

    def applies_to(self, resource: dict) -> bool:
        return (
            re.fullmatch(self.kind, resource["kind"]) is not None
            and re.fullmatch(self.name, resource["metadata"]["name"]) is not None
        )

    def apply(self, resource: dict) -> dict:
        patched = jsonpatch.apply_patch(resource, self.operations)
        assert patched["metadata"]["name"] == resource["metadata"]["name"], self.source
        if patched["kind"] != resource["kind"]:
            assert self.options.get("allowKindChange"), f"{self.source} changes the kind"
        return patched


def _patches(folder: Path, entries: list) -> list[Patch]:
    patches = []
    for entry in entries:
        assert entry.keys() <= {"target", "path", "options"}, (folder, entry)
        source = folder / entry["path"]
        (operations,) = load_all(source)
        assert isinstance(operations, list), f"{source} is not a JSON patch"
        patches.append(
            Patch(
                entry["target"]["kind"],
                entry["target"]["name"],
                operations,
                entry.get("options", {}),
                source,
            )
        )
    return patches


def _set_image(pod: dict, images: list) -> None:
    for container in pod.get("initContainers", []) + pod["containers"]:
        for image in images:
            if container["image"] == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"


def render(folder: Path, resources: list[dict] | None = None) -> list[dict]:
    """The resources of the kustomization in `folder`; a component changes those given."""
    (kustomization,) = load_all(folder / "kustomization.yaml")
    unknown = kustomization.keys() - KNOWN
    assert not unknown, f"{folder}/kustomization.yaml: not known here: {unknown}"
    is_component = kustomization["kind"] == "Component"
    assert is_component == (resources is not None), folder
    resources = list(resources or [])
    for name in kustomization.get("resources", []):
        path = folder / name
        resources += render(path) if path.is_dir() else load_all(path)
    for generator in kustomization.get("configMapGenerator", []):
        assert generator.keys() == {"name", "files"}, folder
        resources.append(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": generator["name"]},
                "data": {
                    Path(file).name: (folder / file).read_text() for file in generator["files"]
                },
            }
        )
    for name in kustomization.get("components", []):
        resources = render((folder / name).resolve(), resources)
    for patch in _patches(folder, kustomization.get("patches", [])):
        resources = [patch.apply(r) if patch.applies_to(r) else r for r in resources]
    for resource in resources:
        if "template" in resource.get("spec", {}):
            _set_image(resource["spec"]["template"]["spec"], kustomization.get("images", []))
    return resources
