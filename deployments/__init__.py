"""What differs between kinds of sites: data only, which `p3s deploy` applies."""

if __name__ != "p3s_prefect.deployments":
    raise ImportError("import this package as p3s_prefect.deployments")
