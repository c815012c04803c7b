"""What runs in which order: the DAG model, the DAGs and the engines that run them."""
