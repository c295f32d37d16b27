"""A day of arrivals over N replicas, with the service's own scheduler, meter and gate in simulated time."""
