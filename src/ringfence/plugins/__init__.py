"""The plugin runtime: manifests, loading, lifecycle, hot reload, shared folders, instances and their extensions."""
