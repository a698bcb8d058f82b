"""Runs that are Kubernetes pods: manifests, one watch for all, starts, ends, logs, and the tasks that users write."""
