"""Published formats: export, import, model card."""
