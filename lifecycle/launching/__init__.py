"""What starts a run on a cluster: hosts behind a topology, the job's command, manifests. Nothing here needs devices."""
