"""A listener for kubelets and scrapers that serves only two read-only pages of the admin interface."""

from extproc.envoy.builders import Dict, address, filter_entry, typed

_ADMIN = "admin"
PAGES = ("/ready", "/stats/prometheus")


def probe_listener(listen: str) -> Dict:
    """Return a listener that serves `PAGES`. The admin interface itself stays on loopback, as it can stop Envoy."""
    manager = typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="probe",
        route_config={
            "virtual_hosts": [
                {
                    "name": "probe",
                    "domains": ["*"],
                    "routes": [{"match": {"path": page}, "route": {"cluster": _ADMIN}} for page in PAGES],
                }
            ]
        },
        http_filters=[
            filter_entry("envoy.filters.http.router", typed("envoy.extensions.filters.http.router.v3.Router"))
        ],
    )
    name = "envoy.filters.network.http_connection_manager"
    return {
        "name": "probe",
        "address": address(listen),
        "filter_chains": [{"filters": [{"name": name, "typed_config": manager}]}],
    }


def admin_cluster(admin: str) -> Dict:
    """Return the cluster of the admin interface at `admin`."""
    return {
        "name": _ADMIN,
        "type": "STATIC",
        "connect_timeout": "0.25s",
        "load_assignment": {
            "cluster_name": _ADMIN,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(admin)}}]}],
        },
    }
