"""Parameters fitted on traffic."""
