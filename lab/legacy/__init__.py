"""A legacy site in the lab: native units, nginx and a hand-made ingress, as production is before callfleet.

`site` says what the hosts' files say (and `contradictions` what they may say wrongly), `files` turns that into files,
`laydown` puts them on hosts that run. Nothing here knows what callfleet lays down, and the other way round.
"""

from lab.legacy.contradictions import CONTRADICTIONS, check_contradictions, seeded
from lab.legacy.laydown import lay_down, layers
from lab.legacy.site import LegacySite, site_of

__all__ = ["CONTRADICTIONS", "LegacySite", "check_contradictions", "lay_down", "layers", "seeded", "site_of"]
