"""Pages about runs (docs/report.md): `write` gathers what a page tells as `data`, `page` and `compare` lay it out."""
