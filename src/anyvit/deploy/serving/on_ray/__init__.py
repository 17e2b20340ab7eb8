"""The same server as replicas on a Ray cluster. Begin at `deployment.py`: it alone is imported from outside."""
