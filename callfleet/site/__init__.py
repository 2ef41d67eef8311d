"""A site: its hosts, fleets, images and secrets, loaded from `inventories/<site>.yml` and checked as a whole."""

from callfleet.errors import Problem, SiteError
from callfleet.site.defaults import Brand, Defaults, Ports
from callfleet.site.load import load_site
from callfleet.site.model import Fleet, Host, ListenPorts, Site, SshSettings

__all__ = [
    "Brand",
    "Defaults",
    "Fleet",
    "Host",
    "ListenPorts",
    "Ports",
    "Problem",
    "Site",
    "SiteError",
    "SshSettings",
    "load_site",
]
