"""`python -m kubectl_probe`."""

import sys

from kubectl_probe.main import main

if __name__ == "__main__":
    sys.exit(main())
