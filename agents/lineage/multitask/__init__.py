"""A lineage of students of several tasks: config, course, what is scored and reported of each task."""
