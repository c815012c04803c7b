"""What looks wrong in collected state: NetstackAssertion, KubernetesAssertion, and the table of findings."""
