"""A site as pyinfra's inventory. The two lines of every `inventories/<site>.py` call `load`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from callfleet.credentials import unusable
from callfleet.errors import CallfleetError, Problem, SiteError
from callfleet.site import Host, Site, load_site

Groups = dict[str, list[Any]]


def load(inventory_file: str) -> Groups:
    """The groups of the site whose `.yml` lies beside `inventory_file`.

    pyinfra runs inventory files and shows a traceback for any exception of theirs, so a site that is wrong, or still
    has the addresses it was shipped with, ends the program here: message on stderr, exit code 1, nothing connected.
    """
    # What a connection fails with is said under its host's name; the library would print a traceback beside it.
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)
    try:
        site = load_site(Path(inventory_file).with_suffix(".yml"))
        refuse_unedited(site)
        refuse_unusable(site)
    except CallfleetError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(1) from None
    return groups(site)


def refuse_examples(site: Site) -> None:
    """SiteError while documentation addresses are still in a site."""
    if problems := site.environment_refuses():
        raise SiteError(
            problems,
            f"The site {site.name} still has values from the documentation. Edit these in {site.path.name} first; "
            "nothing was connected to",
        )


def refuse_unedited(site: Site) -> None:
    """SiteError while a site cannot be connected to: documentation addresses are still in it, or host keys unknown.

    Everything that connects calls this first.
    """
    refuse_examples(site)
    missing = {host.ssh.known_hosts for host in site.hosts if not host.ssh.known_hosts.is_file()}
    if missing:
        hint = f"Host keys are pinned, never accepted unseen. Next: callfleet host pin --site {site.name}"
        raise SiteError(
            [Problem(each, "", "the pinned host keys of the site", got="no such file", hint=hint) for each in missing],
            f"The host keys of the site {site.name} are not known; nothing was connected to",
        )


def refuse_unusable(site: Site, hosts: Collection[str] | None = None) -> None:
    """CallfleetError while a secret or certificate that the site names cannot be had, or a certificate cannot serve.

    With `hosts`, certificates of other hosts do not matter.
    """
    if problems := unusable(site, hosts):
        lines = "\n".join(f"  {problem}" for problem in problems)
        elsewhere = "" if hosts is not None else "\nHosts that get none of these: callfleet plan or apply, with --limit"
        raise CallfleetError(
            f"The site {site.name} names secrets or certificates of no use; nothing was connected to:\n"
            f"{lines}{elsewhere}"
        )


def groups(site: Site) -> Groups:
    """pyinfra's groups: `all` with the hosts' data, and by name `<role>_hosts` and `fleet-<name>`."""
    result: Groups = {"all": [(host.name, host_data(site, host)) for host in site.hosts]}
    for role in ("fleet", "ingress", "app"):
        result[f"{role}_hosts"] = [host.name for host in site.hosts if role in host.roles]
    for fleet in site.fleets:
        result[f"fleet-{fleet.name}"] = list(fleet.hosts)
    return result


def host_data(site: Site, host: Host) -> dict[str, Any]:
    """What pyinfra needs to connect, as plain values: `debug-inventory` prints it. Holds no secret."""
    ssh = host.ssh
    data: dict[str, Any] = {
        "ssh_hostname": ssh.hostname,
        "ssh_port": ssh.port,
        "ssh_user": ssh.user,
        "ssh_known_hosts_file": str(ssh.known_hosts),
        # Without this, pyinfra accepts unknown host keys and ignores what ~/.ssh/config says about it.
        "ssh_strict_host_key_checking": "yes",
        "ssh_paramiko_connect_kwargs": {
            "timeout": ssh.connect_timeout_seconds,
            "banner_timeout": ssh.connect_timeout_seconds,
        },
        "site_file": str(site.path),
        "roles": sorted(host.roles),
    }
    if ssh.key:
        data["ssh_key"] = str(ssh.key)
    if ssh.config:
        data["ssh_config_file"] = str(ssh.config)
    if ssh.user != "root":
        data["_sudo"] = True
        data["_use_sudo_password"] = False
    return data
