"""The evaluation tasks, one module per benchmark family."""
