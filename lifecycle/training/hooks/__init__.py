"""What a run does between its steps: each kind of work a file, called in the order that the loop names."""
