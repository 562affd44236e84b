"""Before torch loads its OpenMP runtime: waiting threads sleep instead of spinning.

Spinning gains a little when a process has the machine to itself, and costs a factor of ten when two processes, or one
and its data workers, share the cores.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
