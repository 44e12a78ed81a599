"""Other implementations of the same work, and the clock that times them beside upalm."""
