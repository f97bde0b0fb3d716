"""The extensions that carry numbers and audit events out of an instance, and their configuration."""

from ringfence.plugins.exporters import AuditLogConfigEXT, AuditLogEXT, PrometheusConfigEXT, PrometheusEXT

__all__ = ["AuditLogConfigEXT", "AuditLogEXT", "PrometheusConfigEXT", "PrometheusEXT"]
