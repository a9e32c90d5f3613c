"""The S2V model and its inference. Knows tensors; knows nothing of storage, schemas or Airflow.

"Spec b.2" and the like refer to the sections of docs/wan-s2v.md, from which the engine was written.
"""

import os

# Before torch is imported anywhere: threads that wait for each other sleep instead of spinning. On a machine that has
# other work too (Airflow, a database) spinning made a clip on two CPU threads four times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
