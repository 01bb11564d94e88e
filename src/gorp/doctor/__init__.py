"""Check an installation and a workspace, and say of each part whether it is in order. Nothing is written.

finding.py        what a check says; a check that fails itself is a problem too
installation.py   Python, packages, devices, the cache of the hub
folder.py         a workspace: permissions, disk, lock, ledger, versions, scores, YAML, base model
"""

from gorp.doctor.finding import Finding
from gorp.doctor.folder import check_workspace
from gorp.doctor.installation import check_installation


__all__ = ["Finding", "check_installation", "check_workspace"]
