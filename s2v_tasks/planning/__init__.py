"""Planning: pure functions from a request and the facts of its inputs to the plan of the job."""
