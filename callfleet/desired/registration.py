"""Outbound registration: the API's fleet list and the Dialler's. The inbound one is the ingress configuration.

Only hosts whose canary call succeeded are registered. URLs in the API's list that are not ours are kept: ours are the
declared hosts' and those that the mark names, so that a host which left takes its URL along.
"""

from __future__ import annotations

import json
import shlex

from callfleet.actual import Actual, ApiRequest
from callfleet.desired import app
from callfleet.desired.context import Context
from callfleet.desired.mark import registered_urls
from callfleet.expected import Command, Concern


def api_request(context: Context) -> ApiRequest:
    """How the app host itself reads the API's fleet list: the token stays in a file of root's there."""
    folder = f"/opt/stacks/{context.site.brand.app_stack}"
    return ApiRequest(
        curl_config=f"{folder}/secrets/api-curl.conf",
        url=f"http://127.0.0.1:{context.site.ports.api}/api/v1/settings/fleet",
    )


def core_fleet(context: Context, current: tuple[str, ...], registered: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """The list as it must be: what is not ours stays first and in its order, ours follow as the site file has them.

    `registered`: the URLs that we registered earlier.
    """
    ours = registered | set(context.site.fleet_urls)
    wanted = tuple(str(host.url) for host in context.registered_hosts)
    return tuple(url for url in current if url.rstrip("/") not in ours) + wanted


def outbound_api(context: Context, actual: Actual | None) -> Concern | None:
    """On the app host: `core_fleet` through the API, never through its database."""
    if "app" not in context.host.roles:
        return None
    request = api_request(context)
    current = actual.core_fleet if actual is not None and isinstance(actual.core_fleet, tuple) else ()
    wanted = core_fleet(context, current, registered_urls(actual))
    # Quoted: the list has URLs that are not ours, and they may hold anything.
    body = shlex.quote(json.dumps({"core_fleet": list(wanted)}))
    # The list is read again on the host and refused when it moved: PUT replaces the whole list.
    expected_now = shlex.quote(json.dumps(sorted(current)))
    curl = f"curl -fsS --max-time 30 -K {request.curl_config}"
    script = f"""
current=$({curl} {request.url}) || exit 1
printf '%s' "$current" | python3 -c 'import json,sys; now=sorted(json.load(sys.stdin)["core_fleet"]); \
sys.exit(0 if now==json.loads(sys.argv[1]) else "core_fleet changed meanwhile: "+str(now))' {expected_now} || exit 1
{curl} -X PUT -H 'Content-Type: application/json' -d {body} {request.url} >/dev/null || exit 1
{curl} {request.url} | python3 -c 'import json,sys; kept=json.load(sys.stdin)["core_fleet"]; \
sys.exit(0 if kept==json.loads(sys.argv[1])["core_fleet"] else "the API did not keep the list")' {body}
"""
    return Concern(
        "registration",
        (
            Command(
                subject="core_fleet",
                fact="core_fleet",
                wanted=json.dumps(list(wanted)),
                action="register",
                script=script,
                reason="the API's fleet list",
            ),
        ),
    )


def outbound_dialler(context: Context, actual: Actual | None) -> Concern | None:
    """On the app host: the one Dialler, restarted only while no call is in set-up."""
    return app.dialler(context) if "app" in context.host.roles else None
