"""Which network is this? Providers recognise an environment and name the parts that a Network is built from."""
