"""Reads `cargo metadata` and writes the components of the binary as CycloneDX 1.5: names, versions, licences, sources, and which
component needs which. Development dependencies are left out."""

import json
import sys

metadata = json.load(sys.stdin)
packages = {package["id"]: package for package in metadata["packages"]}
nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
root = next(package for package in metadata["packages"] if package["name"] == "skerry")


def needs(identity):
    """Those that are built into the binary, or run while it is built."""
    for dependency in nodes[identity]["deps"]:
        if any(kind["kind"] != "dev" for kind in dependency["dep_kinds"]):
            yield dependency["pkg"]


def reference(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


found, waiting = set(), [root["id"]]
while waiting:
    identity = waiting.pop()
    if identity not in found:
        found.add(identity)
        waiting.extend(needs(identity))


def component(package):
    described = {
        "type": "library",
        "bom-ref": reference(package),
        "name": package["name"],
        "version": package["version"],
        "purl": reference(package),
    }
    if package.get("license"):
        # Cargo also accepts "/" for "OR".
        described["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
    if package.get("repository"):
        described["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
    return described


others = sorted((packages[identity] for identity in found - {root["id"]}), key=reference)
application = component(root) | {"type": "application"}
bom = {
    "bomFormat": "CycloneDX",
    "specVersion": "1.5",
    "version": 1,
    "metadata": {"component": application},
    "components": [component(package) for package in others],
    "dependencies": [
        {"ref": reference(packages[identity]), "dependsOn": sorted({reference(packages[other]) for other in needs(identity)})}
        for identity in sorted(found, key=lambda identity: reference(packages[identity]))
    ],
}
json.dump(bom, sys.stdout, indent=1)
sys.stdout.write("\n")
