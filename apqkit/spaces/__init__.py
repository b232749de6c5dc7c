"""Search spaces: dims, canonical form, network tables."""
