"""Defaults of every site: plain literals only. Site files override ports and limits; brands are chosen by name."""

# What differs between the names under which the same software is sold. Names, never behaviour.
brands = {
    "cxbridge": {
        "name": "CX Bridge",
        "stack": "cxb-fleet",
        "app_stack": "cxb-app",
        "ingress_stack": "cxb-ingress",
        "socket_prefix": "cxbcore",
        "worker_env_prefix": "CXBCORE",
        "secret_header": "X-CXBCore-Secret",
        "legacy_unit": "cxbcore@",
        "legacy_dir": "/opt/cxbcore",
        "health": {"path": "/health", "calls_field": "worker_calls", "id_field": "worker_id"},
        "services": {"api": "cxb-api", "dialler": "cxb-dialler", "console": "cxb-console"},
        "images": {
            "core_worker": "cxb-core-worker",
            "api": "cxb-api",
            "dialler": "cxb-dialler",
            "console": "cxb-console",
        },
    },
    "voxbridge": {
        "name": "VoxBridge",
        "stack": "vox-fleet",
        "app_stack": "vox-app",
        "ingress_stack": "vox-ingress",
        "socket_prefix": "voxcore",
        "worker_env_prefix": "VOXCORE",
        "secret_header": "X-VoxCore-Secret",
        "legacy_unit": "voxcore@",
        "legacy_dir": "/opt/voxcore",
        "health": {"path": "/health", "calls_field": "worker_calls", "id_field": "worker_id"},
        "services": {"api": "vox-api", "dialler": "vox-dialler", "console": "vox-console"},
        "images": {
            "core_worker": "vox-core-worker",
            "api": "vox-api",
            "dialler": "vox-dialler",
            "console": "vox-console",
        },
    },
}

# Images that have no brand.
common_images = {"proxy": "haproxy", "redis": "redis", "mongo": "mongo", "minio": "minio"}

# TCP ports. front, fleet, fleet_shared and mtls face the network; the others are bound to 127.0.0.1 on the app host.
ports = {
    "front": 443,
    "fleet": 443,
    "fleet_shared": 9443,
    "mtls": 8443,
    "api": 8080,
    "console": 8081,
    "dialler_health": 8090,
    "redis": 6379,
    "mongo": 27017,
    "minio": 9000,
}

# Directories on every host.
paths = {
    "mark": "/etc/callfleet",
    "stacks": "/opt/stacks",
    "run": "/run",
    "state": "/var/lib",
    "locks": "/run/callfleet",
    "onhost": "/usr/local/lib/callfleet/onhost",
    "slotctl": "/usr/local/sbin/slotctl",
}

# User and group id of the processes in the application's containers.
worker_uid = 1000

# Seconds. What a site may want to change is in its own `calls:`; these are the tool's own.
timeouts = {
    "ssh_connect": 10,
    "slot_start": 60,
    "canary": 10,
    "apt_lock": 300,
    "api_health": 20,
}
