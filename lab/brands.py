"""The names under which the application is sold, as every site has them."""

from __future__ import annotations

from callfleet.site.defaults import Brand, read_defaults
from lab import paths
from lab.errors import LabError


def brand_of(name: str) -> Brand:
    """The brand of that name in group_data. Raises LabError naming the ones there are."""
    file = paths.REPO / "group_data" / "all.py"
    defaults, document = read_defaults(file)
    if defaults is None:
        raise LabError(f"{file}: {document.problems[0]}", "callfleet validate prod")
    if name not in defaults.brands:
        raise LabError(f"there is no brand {name}; {file} has {', '.join(defaults.brands)}")
    return defaults.brands[name]
