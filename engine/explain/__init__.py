"""`why`: what blocks a job, and the smallest changes that let it run."""
