"""NetworkPolicy: which policies concern a pod. What they allow is not evaluated yet."""
