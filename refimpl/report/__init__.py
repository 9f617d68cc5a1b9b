"""Human-readable reports: figures and self-contained HTML pages."""
