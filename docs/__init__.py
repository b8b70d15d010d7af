"""The documentation: pages for mkdocs, and in `generate` the code that writes the reference pages."""
