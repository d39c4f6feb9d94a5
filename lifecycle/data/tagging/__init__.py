"""Sources in partitions, tagged in processes of this machine or on a cluster."""
