"""Evaluation: tasks as local rows and a few lines of configuration, scored through a narrow view of the model."""
