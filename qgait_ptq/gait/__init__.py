"""All that knows gait: data, protocols, metrics, walkers, networks."""
