"""The extensions that come with ringfence, and their configuration."""
