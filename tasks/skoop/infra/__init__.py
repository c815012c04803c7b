"""What lies between the nodes: the InfraShim, one module per environment."""
