"""Defaults of every site: plain literals only. Site files override ports and limits; brands are chosen by name."""

# What differs between the names under which the same software is sold. Names, never behaviour.
# dialler_quiet: the Dialler may be restarted while the JSON document at `path` of its health port has `field` equal to
# `equals` (a whole number, text, true or false).
# outbox: which files of a worker's outbox are call results that the API does not have yet.
brands = {
    "cxbridge": {
        "name": "CX Bridge",
        "stack": "cxb-fleet",
        "app_stack": "cxb-app",
        "socket_prefix": "cxbcore",
        "worker_env_prefix": "CXBCORE",
        "secret_header": "X-CXBCore-Secret",
        "dialler_quiet": {"path": "/health", "field": "calls_in_setup", "equals": 0},
        "outbox": "*.json",
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
        "socket_prefix": "voxcore",
        "worker_env_prefix": "VOXCORE",
        "secret_header": "X-VoxCore-Secret",
        "dialler_quiet": {"path": "/health", "field": "calls_in_setup", "equals": 0},
        "outbox": "*.json",
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

# User and group id of the processes in the application's containers.
worker_uid = 1000

# Seconds in which a host must accept an SSH connection; a site file may say another number.
ssh_connect_seconds = 10
