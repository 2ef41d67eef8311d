#!/usr/bin/env -S python3 -S -E
# ruff: noqa: T201 - its output is what it is asked for
"""A stand-in for the docker program: one process per "container", state in $STANDIN_DOCKER, every call recorded.

It does what the slot program needs and no more. The Compose file is JSON: {"services": {NAME: {"label", "mode"}}}.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HOME = Path(os.environ["STANDIN_DOCKER"])
RUN = Path(os.environ["STANDIN_RUN"])


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def held():
    return [json.loads(path.read_text()) for path in sorted(HOME.glob("*.container"))]


def save(value):
    path = HOME / f"{value['id']}.container"
    path.with_suffix(".new").write_text(json.dumps(value))
    path.with_suffix(".new").replace(path)


def launch(value):
    mode, service = value["mode"], value["service"]
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    if service.startswith("worker-"):
        command = [
            sys.executable,
            "-S",
            "-E",
            str(Path(__file__).with_name("standin_worker.py")),
            service[7:],
            str(RUN),
            mode,
        ]
    if os.environ.get("STANDIN_NETNS"):
        command = ["unshare", "-n", *command]
    log = (HOME / f"{value['id']}.log").open("a")
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    save({**value, "pid": child.pid, "started": f"2026-01-01T00:00:00.{time.monotonic_ns()}Z"})


def end(value, number):
    if alive(value["pid"]):
        os.kill(value["pid"], number)
        for _ in range(100):
            if not alive(value["pid"]):
                return
            time.sleep(0.02)
        os.kill(value["pid"], signal.SIGKILL)


def compose(words):
    document = json.loads(Path(words[words.index("--file") + 1]).read_text())["services"]
    keep = "--no-recreate" in words
    beside = words[words.index("--scale") + 1] if "--scale" in words else ""
    skip, names = {"never", beside}, []
    for word in words[words.index("up") + 1 :]:
        if not word.startswith("-") and word not in skip:
            names.append(word)
    for name in names or document:
        spec = document[name]
        mine = [c for c in held() if c["service"] == name]
        if f"{name}=2" == beside:
            mine = []
        if mine and keep:
            if not alive(mine[0]["pid"]):
                launch(mine[0])
            continue
        for old in mine:
            if alive(old["pid"]):
                (HOME / "recreated-while-running").open("a").write(name + "\n")
                end(old, signal.SIGKILL)
            (HOME / f"{old['id']}.container").unlink()
        fresh = os.urandom(32).hex()
        made = {"label": spec["label"], "mode": spec.get("mode", "ok"), "hash": os.urandom(4).hex(), "memory": 0}
        launch({"id": fresh, "service": name, "pid": 0, **made})


def inspect(ids):
    shown = []
    for value in held():
        if value["id"] in ids:
            up = alive(value["pid"])
            labels = {
                "callfleet.stack": "t-fleet",
                "callfleet.service": value["service"],
                "callfleet.config": value["label"],
                "com.docker.compose.config-hash": value["hash"],
            }
            state = {
                "Status": "running" if up else "exited",
                "Pid": value["pid"] if up else 0,
                "StartedAt": value["started"],
            }
            if value["mode"] in ("healthy", "unhealthy"):
                state["Health"] = {"Status": value["mode"]}
            config = {"Image": "standin:1", "Labels": labels}
            shown.append(
                {
                    "Id": value["id"],
                    "Config": config,
                    "HostConfig": {"Memory": value["memory"], "PidsLimit": None},
                    "Image": "sha256:0",
                    "State": state,
                    "RestartCount": 0,
                }
            )
    print(json.dumps(shown))


def main(words):
    with (HOME / "calls").open("a") as file:
        file.write(" ".join(words) + "\n")
    if (HOME / "broken").exists():
        sys.exit("Cannot connect to the Docker daemon")
    by_id = {value["id"]: value for value in held()}
    if words[0] == "compose":
        compose(words)
    elif words[0] == "ps":
        print("\n".join(by_id))
    elif words[0] == "inspect":
        inspect(words)
    elif words[0] == "stop":
        end(by_id[words[-1]], signal.SIGTERM)
    elif words[0] == "update":
        by_id[words[-1]]  # it must be there
    elif words[0] == "rm":
        if alive(by_id[words[-1]]["pid"]):
            sys.exit("container is running")
        (HOME / f"{words[-1]}.container").unlink()
    elif words[0] == "logs":
        print((HOME / f"{words[-1]}.log").read_text())
    elif words[0] == "exec":
        sys.exit((HOME / "config-is-bad").read_text() if (HOME / "config-is-bad").exists() else 0)
    else:
        sys.exit(f"stand-in docker does not know {words}")


main(sys.argv[1:])
